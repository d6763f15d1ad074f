"""Photographs (:mod:`.images`), models with their weights (:mod:`.models`), and data sets (:mod:`.sets`), read from files.

Imports nothing heavy: Pillow, scikit-image, timm and torchvision are imported where they are used.
"""
