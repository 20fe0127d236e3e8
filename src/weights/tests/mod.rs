//! Bases as users have them: whole, cut short, and hostile.

mod folder;
mod gguf;
mod gguf_families;
mod tokenizer;
