"""What a network does on one photograph, in pictures."""
