//! Frozen weights on the disk.
