//! The CUDA kernels without a GPU: the device code, compiled for the CPU, against its twin in Rust; and every file compiled to
//! PTX and to the code of GPUs. What no CPU can show (the launch itself, speed, and the instructions that replace conversions) is left to a GPU.

use equipoise::device::driver::Program;
use equipoise::ops::cuda::{TYPES, programs};
use equipoise::ops::dequantize::dequantize;
use equipoise::rng::Rng;
use half::bf16;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn kernels() -> PathBuf {
    root().join("src/ops/cuda/kernels")
}

/// The first of these compilers that is there.
fn compiler<'a>(names: &[&'a str]) -> Option<&'a str> {
    let works = |name: &&&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    names.iter().find(works).copied()
}

/// Runs a program that must succeed, with `input` on its standard input.
fn run(command: &mut Command, input: &[u8]) -> Vec<u8> {
    let Output { status, stdout, stderr } = output_of(command, input);
    assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&stderr));
    stdout
}

fn output_of(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // One that fails early reads nothing; its status tells.
        scope.spawn(move || stdin.write_all(input).ok());
        child.wait_with_output().unwrap()
    })
}

/// Builds `tests/cuda/<name>.cpp`, which has the kernels of `<name>.cu` in it; `None` without a compiler.
fn host_program(name: &str, folder: &Path) -> Option<PathBuf> {
    let Some(compiler) = compiler(&["c++", "g++", "clang++"]) else {
        skipped("no C++ compiler (c++, g++, clang++) to run the kernels on the CPU");
        return None;
    };
    let program = folder.join(name);
    // No joined rounding, as on the GPU.
    let options =
        ["-std=c++17", "-O1", "-pthread", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"];
    let mut command = Command::new(compiler);
    command.args(options).arg("-I").arg(kernels()).arg("-I").arg(root().join("tests/cuda"));
    command.arg(root().join("tests/cuda").join(format!("{name}.cpp"))).arg("-o").arg(&program);
    run(&mut command, &[]);
    Some(program)
}

fn random_bytes(count: usize, rng: &mut Rng) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    bytes.truncate(count);
    bytes
}

/// Bytes that no quantizer writes too: subnormal, infinite and NaN scales, and every value of every field.
#[test]
fn dequantized_numbers_are_those_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = host_program("dequantize", folder.path()) else { return };
    let mut rng = Rng::new(7);
    for (dtype, name) in TYPES {
        // Three and a bit blocks of threads; of plain floats, an end within the eight numbers of a thread.
        let count = if dtype.block_size() == 1 { 7001 } else { 27 * 256 };
        let bytes = random_bytes(count / dtype.block_size() * dtype.type_size(), &mut rng);
        let mut expected = vec![0f32; count];
        dequantize(dtype, &bytes, &mut expected);
        assert!(expected.iter().filter(|x| x.is_finite()).count() > count / 2);
        let kernel = |out: &str| {
            run(Command::new(&program).args([format!("dequantize_{name}_{out}"), count.to_string()]), &bytes)
        };

        let exact = kernel("f32");
        assert_eq!(exact.len(), 4 * count);
        for (i, (got, expected)) in exact.as_chunks().0.iter().zip(&expected).enumerate() {
            let got = f32::from_le_bytes(*got);
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{name}, number {i}: {got} instead of {expected}");
        }
        let rounded = kernel("bf16");
        assert_eq!(rounded.len(), 2 * count);
        for (i, (got, expected)) in rounded.as_chunks().0.iter().zip(&expected).enumerate() {
            let (got, expected) = (bf16::from_le_bytes(*got), bf16::from_f32(*expected));
            let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
            assert!(same, "{name} in bf16, number {i}: {got} instead of {expected}");
        }
    }
}

/// A file of kernels as the library compiles it: what is defined first, the prelude, the file.
struct Module {
    name: String,
    source: PathBuf,
    kernels: Vec<String>,
}

const ROWS: [&str; 15] = [
    "add",
    "add_bias",
    "convert",
    "copy_rows",
    "cross_entropy",
    "dropout",
    "dropout_add",
    "gather",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "scale",
    "scatter",
    "swiglu",
    "swiglu_backward",
];

const FAMILIES: [&str; 11] = [
    "add_normalized",
    "add_scaled",
    "branch_norm_backward",
    "cross_entropy_capped",
    "geglu",
    "geglu_backward",
    "head_norm",
    "head_norm_backward",
    "rope_neighbours",
    "scaled",
    "softcap",
];

const OBJECTIVES: [&str; 2] = ["along", "largest_entropy"];

const ATTENTION: [&str; 4] = ["attention", "attention_backward_keys", "attention_backward_queries", "attention_delta"];

/// The kernels that a file must have, and no others.
fn kernels_of(module: &str) -> Vec<String> {
    let in_both_types = |names: &[&str]| -> Vec<String> {
        names.iter().flat_map(|name| ["f32", "bf16"].map(|out| format!("{name}_{out}"))).collect()
    };
    match module {
        "adamw" => vec!["adamw".into(), "sum_of_squares".into()],
        "attention" => in_both_types(&ATTENTION),
        "dequantize" => {
            in_both_types(&TYPES.map(|(_, name)| format!("dequantize_{name}")).each_ref().map(|name| &**name))
        }
        "families" => in_both_types(&FAMILIES),
        "objectives" => in_both_types(&OBJECTIVES),
        "rows" => in_both_types(&ROWS),
        _ => panic!("{module}.cu: its kernels must be named here"),
    }
}

fn modules(folder: &Path) -> Vec<Module> {
    let write = |program: Program| {
        let values = program.defines.iter().map(|(_, value)| value.to_string());
        let name: Vec<String> = std::iter::once(program.name.to_owned()).chain(values).collect();
        let source = folder.join(format!("{}.cu", name.join("-")));
        std::fs::write(&source, program.text()).unwrap();
        Module { kernels: kernels_of(program.name), name: program.name.to_owned(), source }
    };
    programs(64).map(write).into()
}

/// NVIDIA's run-time compiler, where `CUDA_HOME` or `LD_LIBRARY_PATH` has it.
fn nvrtc_library() -> Option<PathBuf> {
    let home = std::env::var_os("CUDA_HOME").map(PathBuf::from);
    let homes = home.iter().flat_map(|home| ["lib", "lib64", "targets/x86_64-linux/lib"].map(|lib| home.join(lib)));
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = homes.chain(std::env::split_paths(&paths)).collect();
    let names = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
    folders.iter().flat_map(|folder| names.map(|name| folder.join(name))).find(|path| path.is_file())
}

/// What the library asks for, from the RTX 20 series on: the T4, the A100, the RTX 4090, and the H100.
const CAPABILITIES: [u32; 4] = [75, 80, 89, 90];

/// As above, and the A6000, Blackwell's B200 and its RTX 50 series.
const CODE: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// That the PTX is for this architecture and has the module's kernels.
fn assert_is_whole(ptx: &[u8], module: &Module, capability: u32) {
    let (ptx, name) = (String::from_utf8_lossy(ptx), &module.name);
    assert!(ptx.contains(&format!(".target sm_{capability}")), "{name}: {ptx:.300}");
    let entries = ptx.split(".entry ").skip(1).map(|rest| rest.split('(').next().unwrap().trim());
    let mut entries: Vec<_> = entries.collect();
    let mut expected: Vec<_> = module.kernels.iter().map(|name| &**name).collect();
    if name == "attention" && capability < 80 {
        // No tensor core takes bf16 there; the kernels may be empty or left out.
        entries.retain(|name| !name.ends_with("_bf16"));
        expected.retain(|name| !name.ends_with("_bf16"));
    }
    entries.sort_unstable();
    expected.sort_unstable();
    assert_eq!(entries, expected, "{name} for {capability}");
    let same_bits = ["adamw", "dequantize"].contains(&&**name);
    assert!(!same_bits || !ptx.contains("fma.rn.f32"), "{name}: a rounding was left out");
}

#[test]
fn kernels_compile_with_nvrtc() {
    let Some(library) = nvrtc_library() else {
        return skipped("no NVRTC: neither $CUDA_HOME/lib nor LD_LIBRARY_PATH has libnvrtc.so");
    };
    let Some(compiler) = compiler(&["cc", "gcc", "clang"]) else { return skipped("no C compiler to call NVRTC with") };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("nvrtc");
    let mut build = Command::new(compiler);
    run(build.arg(root().join("tests/cuda/nvrtc.c")).arg("-o").arg(&program).arg("-ldl"), &[]);
    for module in modules(folder.path()) {
        for capability in CAPABILITIES {
            let mut command = Command::new(&program);
            command.arg(&library).arg(&module.source).arg(format!("--gpu-architecture=compute_{capability}"));
            // NVRTC looks for its own second library there.
            command.env("LD_LIBRARY_PATH", library.parent().unwrap());
            let output = output_of(&mut command, &[]);
            if output.status.code() == Some(77) {
                return skipped(&format!("no NVRTC: {}", String::from_utf8_lossy(&output.stderr)));
            }
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_is_whole(&output.stdout, &module, capability);
        }
        // What a run takes: a GPU's own code, where NVRTC makes it.
        for capability in CODE {
            let mut command = Command::new(&program);
            command.arg(&library).arg(&module.source).arg(format!("--gpu-architecture=sm_{capability}"));
            let code = output_of(command.env("LD_LIBRARY_PATH", library.parent().unwrap()), &[]);
            let log = String::from_utf8_lossy(&code.stderr);
            if log.contains("invalid value for --gpu-architecture") {
                skipped(&format!("this NVRTC makes no code for {capability}"));
                continue;
            }
            assert!(
                code.status.success() && code.stdout.starts_with(b"\x7fELF"),
                "{} for {capability}: {log}",
                module.name
            );
            for kernel in module.kernels.iter().filter(|kernel| capability >= 80 || !kernel.ends_with("_bf16")) {
                let names = code.stdout.windows(kernel.len()).any(|bytes| bytes == kernel.as_bytes());
                assert!(names, "{}: no {kernel} for {capability}", module.name);
            }
        }
    }
}

#[test]
fn kernels_compile_with_nvcc() {
    let home = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let named = home.as_deref().and_then(Path::to_str);
    let Some(nvcc) = compiler(&[named.unwrap_or("nvcc"), "nvcc"]) else {
        return skipped("no nvcc in $CUDA_HOME/bin or PATH");
    };
    let folder = tempfile::tempdir().unwrap();
    let ptx = folder.path().join("kernels.ptx");
    for module in modules(folder.path()) {
        for capability in CAPABILITIES {
            let mut command = Command::new(nvcc);
            command.arg("-ptx").arg(format!("-arch=compute_{capability}")).arg(&module.source).arg("-o").arg(&ptx);
            run(&mut command, &[]);
            assert_is_whole(&std::fs::read(&ptx).unwrap(), &module, capability);
        }
    }
}
