# What can be done here.
default:
    @"{{ just_executable() }}" --list --justfile "{{ justfile() }}"

# All tests, as the README has them.
test:
    cargo test --release

# Formatting and clippy.
lint:
    cargo fmt --check
    cargo clippy --release --all-targets -- -D warnings

# The library's documentation.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps

# Licences, duplicates and sources of all crates.
deny:
    cargo deny check licenses bans sources

# Known vulnerabilities. Needs the network: the list is fetched from GitHub.
advisories:
    cargo deny check advisories

# All that must pass before a change goes in.
ci:
    .ci/run

# Trains the small adapter.
quickstart:
    cargo run --release -- train recipes/quickstart.yaml

# Each operation of a step by itself.
bench *ARGS:
    cargo bench --bench ops -- {{ ARGS }}

# The CUDA build, checked. Needs neither CUDA nor a GPU.
check-cuda:
    cargo clippy --release --all-targets --features cuda -- -D warnings

# Whole runs through NVIDIA's functions, on libraries that take their place. Needs a C++ compiler, and neither CUDA nor a GPU.
test-cuda:
    cargo build --release --features cuda --example equipoise-gpu
    cargo test --release --features cuda --lib --test main -- cuda_driver device::nvidia

# The tests of the scripts in tests/gpu. Needs Python 3.11, and no GPU.
test-harness:
    python3 -m unittest discover -s tests/gpu -p 'test_*.py'

# Rows to tokens against datasets and transformers.
bench-data *ARGS:
    python3 tests/benches/bench_data.py {{ ARGS }}

# Speed and memory against PyTorch + PEFT: see tests/benches/README.md.
bench-peft *ARGS:
    python3 tests/benches/bench_peft.py {{ ARGS }}

# All that needs a GPU, in one call: see tests/gpu/README.md. `just gpu --dry-run` needs none.
gpu *ARGS:
    tests/gpu/run.sh {{ ARGS }}
