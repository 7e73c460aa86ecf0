"""Captions of images: written by BLIP, and measured against those of people."""
