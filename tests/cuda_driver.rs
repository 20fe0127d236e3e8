//! NVIDIA's libraries, as `src/device/nvidia.rs` calls them: with libraries that take their place (`tests/cuda/nvidia.cpp`), whole
//! runs of the program go through it, and no GPU is needed. For builds with the feature `cuda`: `just test-cuda`.

use crate::support::workplace::{Workplace, refusal};
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARIES: [&str; 3] = ["libcuda.so", "libcublas.so", "libnvrtc.so"];

/// A folder with NVIDIA's libraries, made from `tests/cuda/nvidia.cpp`; `None`, said aloud, without a C++ compiler.
#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
fn libraries(place: &Workplace) -> Option<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
    let folder = place.path("libraries");
    std::fs::create_dir(&folder).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O3", "-shared", "-fPIC"]).arg(sources.join("nvidia.cpp"));
    compiler.arg(format!("-DSOURCES=\"{}\"", sources.display())).arg(format!("-DKEPT=\"{}\"", folder.display()));
    let Ok(output) = compiler.args(["-ldl", "-o"]).arg(folder.join(LIBRARIES[0])).output() else {
        eprintln!("skipped: no C++ compiler (c++) to run the kernels of a GPU on the CPU");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in &LIBRARIES[1..] {
        std::os::unix::fs::symlink(LIBRARIES[0], folder.join(name)).unwrap();
    }
    Some(folder)
}

/// A training into `out`, and what it said.
fn train(place: &Workplace, libraries: &Path, out: &str, settings: &[&str], environment: &[(&str, &str)]) -> String {
    let out = format!("output_dir={out}");
    let small = ["data.max_seq_len=48", "training.max_steps=2", out.as_str()];
    let mut command = place.training(&[&small[..], settings].concat());
    command.env("LD_LIBRARY_PATH", libraries).env("XDG_CACHE_HOME", place.path("kernels"));
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("fake CUDA") && !said.contains("panicked"), "{said}");
    said
}

fn losses(place: &Workplace, out: &str) -> Vec<f64> {
    let losses: Vec<f64> = place.metrics(out).iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert!(losses.len() >= 4, "two steps, and validations before and after");
    losses
}

fn compiled(libraries: &Path) -> usize {
    let files = std::fs::read_dir(libraries).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "cpp")).count()
}

/// A run through NVIDIA's functions is the run on the CPU: losses, dropout and validation, with all that a recipe can ask of a
/// GPU's memory; kernels are compiled once.
#[test]
fn a_run_through_nvidias_functions_is_that_on_the_cpu() {
    let place = Workplace::new();
    let Some(libraries) = libraries(&place) else { return };
    for (compute, tolerance) in [("compute=f32", 1e-4), ("compute=bf16", 1e-2)] {
        train(&place, &libraries, "cpu", &["device=cpu", compute, "--overwrite"], &[]);
        let said = train(&place, &libraries, "gpu", &["device=cuda:0", compute, "--overwrite"], &[]);
        assert!(said.contains("Fake GPU, compute capability 9.0"), "{said}");
        let (got, expected) = (losses(&place, "gpu"), losses(&place, "cpu"));
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(&expected) {
            assert!((got / expected - 1.0).abs() < tolerance, "{compute}: losses {got} and {expected}");
        }
    }
    let known = compiled(&libraries);
    assert!(known > 0);
    let offload = "training.gradient_checkpointing=offload";
    let gpu = ["device=cuda", "compute=bf16"];
    train(&place, &libraries, "offload", &[&gpu[..], &[offload]].concat(), &[]);
    train(&place, &libraries, "pageable", &gpu, &[("FAKE_CUDA_PAGEABLE", "1")]);
    let tight = train(&place, &libraries, "tight", &gpu, &[("FAKE_CUDA_MEMORY", "3900000")]);
    assert!(tight.contains("the GPU's memory is full"), "{tight}");
    for other in ["offload", "pageable"] {
        place.assert_same("gpu", other);
    }
    assert_eq!(compiled(&libraries), known, "kernels of an earlier start were taken");
    // A compiler that is older than the GPU makes PTX for it.
    train(&place, &libraries, "ptx", &gpu, &[("FAKE_NVRTC_NEWEST", "86")]);
    place.assert_same("gpu", "ptx");
    assert_eq!(compiled(&libraries), 2 * known);
}

/// A GPU that is not there, a driver that is too old, and too little memory are told before anything is loaded.
#[test]
fn a_gpu_that_is_not_there_or_does_not_do_is_an_error() {
    let place = Workplace::new();
    let Some(libraries) = libraries(&place) else { return };
    for (device, (name, value), message) in [
        ("cuda:1", ("FAKE_CUDA_MEMORY", "1000000000"), "there is no GPU of this number"),
        ("cuda:0", ("FAKE_CUDA_MEMORY", "1000000"), "MiB of the GPU's memory are free"),
        ("cuda:0", ("FAKE_CUDA_VERSION", "12040"), "NVRTC 13.0 is newer than the driver's CUDA 12.4"),
        ("cuda:0", ("FAKE_NVRTC_NEWEST", "70"), "there are no kernels for the architecture of this GPU"),
    ] {
        let mut command = place.command(&["check", "trial.yaml", "--json", "--set", &format!("device={device}")]);
        command.env("LD_LIBRARY_PATH", &libraries).env("XDG_CACHE_HOME", place.path("kernels"));
        refusal(&command.env(name, value).output().unwrap()).says(2, &[message]);
    }
}

/// Libraries that are there under their names, and are none or do not work.
#[test]
fn a_driver_that_does_not_work_is_an_error_and_under_auto_a_warning() {
    let place = Workplace::new();
    let folder = place.path("libraries");
    std::fs::create_dir(&folder).unwrap();
    let build = |source: &str| -> bool {
        place.write("library.c", source);
        LIBRARIES.iter().all(|name| {
            let mut compiler = Command::new("cc");
            compiler.args(["-w", "-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(place.path("library.c"));
            compiler.status().is_ok_and(|status| status.success())
        })
    };
    let with = |device: &str| {
        let mut command = place.command(&["check", "trial.yaml", "--json", "--set", &format!("device={device}")]);
        let output = command.env("LD_LIBRARY_PATH", &folder).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        (output, stderr)
    };
    if !build("int nothing(void) { return 0; }") {
        return;
    }
    let (output, stderr) = with("cuda");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("is something else under its name"), "{stderr}");
    let (output, stderr) = with("auto");
    assert!(output.status.success() && stderr.contains("the CPU is taken instead"), "{stderr}");
    // All that is called, answering with an error: 803 is that of a driver of another version than the kernel's.
    let quoted = concat!(include_str!("../src/device/nvidia.rs"), include_str!("../src/device/nvrtc.rs")).split('"');
    let is_function = |word: &&str| word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !word.is_empty();
    let functions: Vec<_> = quoted.filter(is_function).filter(|word| *word != "cuGetErrorString").collect();
    assert!(functions.contains(&"cuInit") && functions.contains(&"nvrtcGetPTX"));
    let answers = |code: u32| -> String {
        let all: Vec<_> = functions.iter().map(|name| format!("int {name}(void) {{ return {code}; }}\n")).collect();
        let all = all.concat();
        all + "int cuGetErrorString(int e, const char **text) { *text = \"why\"; return 0; }\n"
    };
    for (code, said, warned) in [(100, "there is no NVIDIA GPU", false), (803, "are of different versions", true)] {
        assert!(build(&answers(code)));
        let (output, stderr) = with("cuda");
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
        let (output, stderr) = with("auto");
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.contains("the CPU is taken instead"), warned, "{stderr}");
    }
}
