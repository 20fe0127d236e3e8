//! The CUDA kernels without a GPU: the device code, compiled for the CPU, against its twin in Rust; and every file compiled to
//! PTX. What no CPU can show (the launch itself, speed, and the instructions that replace conversions) is left to a GPU.

use candle_core::quantized::GgmlDType;
use equipoise::ops::dequantize::dequantize;
use equipoise::ops::{rms_norm, rms_norm_backward, swiglu, swiglu_backward};
use equipoise::rng::Rng;
use half::bf16;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const TYPES: [(GgmlDType, &str); 13] = [
    (GgmlDType::F32, "f32"),
    (GgmlDType::F16, "f16"),
    (GgmlDType::BF16, "bf16"),
    (GgmlDType::Q4_0, "q4_0"),
    (GgmlDType::Q4_1, "q4_1"),
    (GgmlDType::Q5_0, "q5_0"),
    (GgmlDType::Q5_1, "q5_1"),
    (GgmlDType::Q8_0, "q8_0"),
    (GgmlDType::Q2K, "q2k"),
    (GgmlDType::Q3K, "q3k"),
    (GgmlDType::Q4K, "q4k"),
    (GgmlDType::Q5K, "q5k"),
    (GgmlDType::Q6K, "q6k"),
];

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

/// Uniform in `[-3, 3)`.
fn random(count: usize, rng: &mut Rng) -> Vec<f32> {
    (0..count).map(|_| (rng.uniform() * 6.0 - 3.0) as f32).collect()
}

#[track_caller]
fn close(what: &str, got: &[f32], expected: &[f32]) {
    let distance = relative_distance_of(got, expected);
    assert!(distance < 1e-6, "{what}: {distance} apart");
}

/// `‖a - b‖ / ‖b‖`; no number where one is not.
fn relative_distance_of(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b))) / norm(&mut b.iter().map(|&b| f64::from(b)))
}

/// Rows shorter and longer than a block of threads, and none that divides them.
#[test]
fn rows_are_those_of_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = host_program("rows", folder.path()) else { return };
    let mut rng = Rng::new(8);
    for (rows, width) in [(3, 24), (2, 257), (3, 700)] {
        let count = rows * width;
        let kernel = |name: &str, inputs: &[&[f32]]| -> Vec<f32> {
            let bytes: Vec<u8> = inputs.iter().flat_map(|input| input.iter().flat_map(|x| x.to_le_bytes())).collect();
            let arguments = [name.to_owned(), rows.to_string(), width.to_string()];
            let out = run(Command::new(&program).args(arguments), &bytes);
            out.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let [x, up, dy] = [(); 3].map(|()| random(count, &mut rng));
        let weight = random(width, &mut rng);

        let mut expected = vec![0f32; count];
        rms_norm(&x, &weight, 1e-5, &mut expected);
        close("rms_norm", &kernel("rms_norm", &[&x, &weight]), &expected);
        expected.fill(0.0);
        rms_norm_backward(&x, &weight, 1e-5, &dy, &mut expected);
        close("rms_norm_backward", &kernel("rms_norm_backward", &[&x, &weight, &dy]), &expected);

        // The CPU has gate and up of a row side by side.
        let beside: Vec<f32> =
            x.chunks(width).zip(up.chunks(width)).flat_map(|(gate, up)| [gate, up].concat()).collect();
        swiglu(&beside, width, &mut expected);
        close("swiglu", &kernel("swiglu", &[&x, &up]), &expected);
        let mut pulled = vec![0f32; 2 * count];
        swiglu_backward(&beside, width, &dy, &mut pulled);
        let part = |first: usize| -> Vec<f32> {
            pulled.chunks(2 * width).flat_map(|row| row[first..first + width].to_vec()).collect()
        };
        let expected = [part(0), part(width)].concat();
        close("swiglu_backward", &kernel("swiglu_backward", &[&x, &up, &dy]), &expected);
    }
}

/// Files of kernels, each behind the prelude as the library compiles it.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let prelude = std::fs::read_to_string(kernels().join("prelude.cuh")).unwrap();
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(kernels()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            let whole = folder.join(path.file_name().unwrap());
            std::fs::write(&whole, format!("{prelude}{}", std::fs::read_to_string(&path).unwrap())).unwrap();
            sources.push(whole);
        }
    }
    assert!(!sources.is_empty());
    sources
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

/// The architectures of the A100, of the RTX 4090, and of the H100: what the library asks for.
const CAPABILITIES: [u32; 3] = [80, 89, 90];

/// That the PTX is for this architecture and has each kernel that its source declares.
fn assert_is_whole(ptx: &[u8], source: &Path, capability: u32) {
    let (ptx, text) = (String::from_utf8_lossy(ptx), std::fs::read_to_string(source).unwrap());
    assert!(ptx.contains(&format!(".target sm_{capability}")), "{}: {ptx:.300}", source.display());
    // A macro stands for two kernels of each type.
    let macros = text.lines().filter(|line| line.starts_with("KERNELS(")).count();
    let plain = text.lines().filter(|line| line.starts_with("extern \"C\" __global__")).count();
    assert_eq!(ptx.matches(".entry ").count(), 2 * macros + plain, "{}", source.display());
    assert!(!ptx.contains("fma.rn.f32") || !source.ends_with("dequantize.cu"), "a rounding was left out");
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
    for source in sources(folder.path()) {
        for capability in CAPABILITIES {
            let mut command = Command::new(&program);
            command.arg(&library).arg(&source).arg(format!("--gpu-architecture=compute_{capability}"));
            // NVRTC looks for its own second library there.
            command.env("LD_LIBRARY_PATH", library.parent().unwrap());
            let output = output_of(&mut command, &[]);
            if output.status.code() == Some(77) {
                return skipped(&format!("no NVRTC: {}", String::from_utf8_lossy(&output.stderr)));
            }
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_is_whole(&output.stdout, &source, capability);
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
    for source in sources(folder.path()) {
        for capability in CAPABILITIES {
            let mut command = Command::new(nvcc);
            command.arg("-ptx").arg(format!("-arch=compute_{capability}")).arg(&source).arg("-o").arg(&ptx);
            run(&mut command, &[]);
            assert_is_whole(&std::fs::read(&ptx).unwrap(), &source, capability);
        }
    }
}
