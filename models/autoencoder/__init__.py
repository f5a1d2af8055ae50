"""Autoencoders: the first stages of latent models."""
