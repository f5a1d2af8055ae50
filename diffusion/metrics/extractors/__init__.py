"""Networks that turn images into features: what a distance between sets of images is a distance of."""
