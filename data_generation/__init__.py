"""Turns annotated images into instruction data, asking another model to write.

It writes the data set schema that `processing` reads and never imports it, nor torch: generation runs on machines
without a GPU, where starting must be quick.
"""
