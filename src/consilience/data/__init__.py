"""What is explained and by whom: photographs (:mod:`.images`) and models with their weights (:mod:`.models`).

Imports nothing heavy: Pillow, scikit-image, timm and torchvision are imported where they are used.
"""
