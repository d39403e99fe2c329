"""From a trained checkpoint to what ships: weights, what they do on test photographs, and the model card of it."""
