"""Numbers about images, and the classifier that some of them look through."""
