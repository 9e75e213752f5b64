"""ResNet-18 on an image, with seeded weights."""
