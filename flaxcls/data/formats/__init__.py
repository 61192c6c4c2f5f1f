"""The formats of image files, each with what its usual decoders lose. `flaxcls.data.decode` chooses among them."""
