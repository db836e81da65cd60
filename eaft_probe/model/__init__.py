"""Models: found, loaded, taken apart into a body and a head that is proven to fit."""
