"""Checkpoints on storage: which folder is which step, what lies in its files, and how to read and write it.

files -> layouts.find_steps -> markers, checkpoint.open_checkpoint -> reader.TensorReader

A tensor is a list of byte ranges (`contents.Extent`), one for a safetensors tensor, one for each rank for FSDP shards
(`fsdp`, from `zip_storages` and `pickle_index`). Whatever reads weights takes a `reader.Reader`.
"""
