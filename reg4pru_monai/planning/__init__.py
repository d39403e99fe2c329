"""What segmenting an archive will take: measured costs of a photograph, and the arithmetic over millions."""
