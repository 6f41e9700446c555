"""Files -> chunks -> vectors: loaders, splitting, embedding, the manifest and the sync that keeps the index in line."""
