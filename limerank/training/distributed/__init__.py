"""Training on several processes: how they are started, and what they exchange in a step.

Every process plans the same steps from the same seed and computes a part of each batch; the sum of
their gradients is the gradient of the full batch, and all make the same update.
"""
