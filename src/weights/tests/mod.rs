//! Bases as users have them: whole, cut short, and hostile.

mod folder;
mod gguf;
mod tokenizer;
