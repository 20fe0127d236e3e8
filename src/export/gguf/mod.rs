//! Writing GGUF files: the container, the metadata that llama.cpp wants, and the tokenizer inside.
