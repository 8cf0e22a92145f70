"""The micro world: drawn scenes of coloured objects with captions, boxes, and a truth that answers every question.

A scene follows from its split, its number and a seed, so nothing is stored.
"""
