//! NVIDIA's libraries, as `src/device/nvidia` calls them: with libraries that take their place (`tests/cuda/nvidia.cpp`), whole
//! runs of the program go through it, and no GPU is needed. For builds with the feature `cuda`: `just test-cuda`.

use crate::support::workplace::{Workplace, refusal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The driver's library.
const DRIVER: &str = "libcuda.so.1";
/// Those of a toolkit, or of Python's packages, of CUDA 13.0.
const TOOLKIT: [&str; 4] = ["libcublas.so.13", "libcublasLt.so.13", "libnvrtc.so.13", "libnvrtc-builtins.so.13.0"];

/// A folder with NVIDIA's libraries, made from `tests/cuda/nvidia.cpp`; `None`, said aloud, without a C++ compiler.
#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
fn libraries(place: &Workplace) -> Option<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
    let folder = place.path("libraries");
    std::fs::create_dir(&folder).unwrap();
    let mut compiler = Command::new("c++");
    compiler.args(["-std=c++17", "-O3", "-shared", "-fPIC"]).arg(sources.join("nvidia.cpp"));
    compiler.arg(format!("-DSOURCES=\"{}\"", sources.display())).arg(format!("-DKEPT=\"{}\"", folder.display()));
    let Ok(output) = compiler.args(["-ldl", "-o"]).arg(folder.join(DRIVER)).output() else {
        eprintln!("skipped: no C++ compiler (c++) to run the kernels of a GPU on the CPU");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    link(&folder, &folder, &TOOLKIT);
    Some(folder)
}

/// Puts the libraries of one folder into another, under these names.
fn link(from: &Path, to: &Path, names: &[&str]) {
    std::fs::create_dir_all(to).unwrap();
    for name in names {
        std::os::unix::fs::symlink(from.join(DRIVER), to.join(name)).unwrap();
    }
}

/// A library of C source, under these names in a folder of the workplace.
fn build(place: &Workplace, folder: &str, names: &[&str], source: &str) -> PathBuf {
    let folder = place.path(folder);
    std::fs::create_dir_all(&folder).unwrap();
    place.write("library.c", source);
    for name in names {
        let mut compiler = Command::new("cc");
        compiler.args(["-w", "-shared", "-fPIC", "-o"]).arg(folder.join(name)).arg(place.path("library.c"));
        assert!(compiler.status().unwrap().success());
    }
    folder
}

/// What `check` says with these variables: its exit code, its report, and its error, or else what it said on stderr.
fn check(place: &Workplace, device: &str, variables: &[(&str, &Path)]) -> (Option<i32>, Value, String) {
    let mut command = place.command(&["check", "trial.yaml", "--json", "--set", &format!("device={device}")]);
    command.env("XDG_CACHE_HOME", place.path("kernels")).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{stderr}");
    if !output.status.success() {
        // On stderr lines are wrapped.
        return (output.status.code(), Value::Null, refusal(&output).text);
    }
    assert!(!stderr.contains("fake CUDA"), "{stderr}");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap(), stderr)
}

/// The files that a check names as the libraries in use.
fn in_use(report: &Value) -> Vec<PathBuf> {
    let text = report.to_string();
    let Some(found) = report.pointer("/libraries").and_then(Value::as_array) else { panic!("no libraries in {text}") };
    found.iter().map(|each| PathBuf::from(each[1].as_str().unwrap())).collect()
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
    let tight = train(&place, &libraries, "tight", &gpu, &[("FAKE_CUDA_MEMORY", "37500000")]);
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
        ("cuda:0", ("FAKE_CUDA_MEMORY", "35000000"), "MiB of the GPU's memory are free"),
        ("cuda:0", ("FAKE_CUDA_MEMORY", "1000000"), "the GPU's memory is full"),
        ("cuda:0", ("FAKE_CUDA_VERSION", "12040"), "is newer than the driver's CUDA 12.4"),
        ("cuda:0", ("FAKE_CUDA_VERSION", "11040"), "the driver runs CUDA 11.4"),
        ("cuda:0", ("FAKE_NVRTC_NEWEST", "70"), "there are no kernels for the architecture of this GPU"),
    ] {
        let (code, _, stderr) = check(&place, device, &[("LD_LIBRARY_PATH", &libraries), (name, Path::new(value))]);
        assert!(code == Some(2) && stderr.contains(message), "{value}: {stderr}");
    }
}

/// Each set of libraries comes from one folder: what lies alone in a folder before it is left, and so is what does not load.
#[test]
fn libraries_of_one_set_come_from_one_place() {
    let place = Workplace::new();
    let Some(whole) = libraries(&place) else { return };
    // cuBLAS alone, with a cuBLASLt that lacks what it calls: bound later, that would end the process at the first product.
    let broken = "int missing(void); int cublasLtGetProperty(int a, int *b) { *b = 1; return missing(); }";
    let lt_alone = build(&place, "lt", &["libcublasLt.so.13"], "int nothing(void) { return 0; }");
    let mixed = build(&place, "mixed", &["libcublas.so.13", "libcublasLt.so.13"], broken);
    let no_lt = build(&place, "no-lt", &["libcublas.so.13", "libnvrtc.so.13"], "int nothing(void) { return 0; }");
    let paths = std::env::join_paths([&lt_alone, &mixed, &no_lt, &whole]).unwrap();
    let (code, report, stderr) = check(&place, "cuda", &[("LD_LIBRARY_PATH", Path::new(&paths))]);
    assert_eq!(code, Some(0), "{stderr}");
    let expected = [DRIVER, TOOLKIT[0], TOOLKIT[1], TOOLKIT[2]].map(|name| whole.join(name));
    assert_eq!(in_use(&report), expected);
    assert_eq!(report["memory"]["workspace"], 32 << 20, "cuBLAS has memory of its own on this GPU, and it counts");
    for passed_over in [mixed.join("libcublasLt.so.13"), no_lt.join("libcublas.so.13"), no_lt.join("libnvrtc.so.13")] {
        let found = stderr.lines().any(|line| line.contains(&*passed_over.to_string_lossy()));
        assert!(found, "no warning of {}: {stderr}", passed_over.display());
    }
    // Alone, each is an error that names the file.
    for (folder, file, message) in [
        (&mixed, "libcublasLt.so.13", "undefined symbol: missing"),
        (&no_lt, "libcublas.so.13", "has no libcublasLt.so.13 beside it"),
    ] {
        let driver = ("LD_LIBRARY_PATH", &*whole);
        let (code, _, stderr) = check(&place, "cuda", &[driver, ("EQUIPOISE_CUDA_PATH", folder)]);
        let named = stderr.contains(&*folder.join(file).to_string_lossy());
        assert!(code == Some(2) && named && stderr.contains(message), "{stderr}");
        assert!(stderr.contains("is damaged or incomplete"), "{stderr}");
    }
}

/// Python's packages in a virtual environment, and a toolkit, without a word to the system's loader.
#[test]
fn virtual_environments_and_toolkits_are_found() {
    let place = Workplace::new();
    let Some(driver) = libraries(&place) else { return };
    for name in TOOLKIT {
        std::fs::remove_file(driver.join(name)).unwrap();
    }
    let (venv, toolkit) = (place.path("venv"), place.path("toolkit"));
    let packages = venv.join("lib/python3.12/site-packages/nvidia");
    link(&driver, &packages.join("cu13/lib"), &TOOLKIT);
    link(&driver, &packages.join("cublas/lib"), &["libcublas.so.12", "libcublasLt.so.12"]);
    link(&driver, &packages.join("cuda_nvrtc/lib"), &["libnvrtc.so.12", "libnvrtc-builtins.so.12.8"]);
    link(&driver, &toolkit.join("lib64"), &TOOLKIT);
    let driver = ("LD_LIBRARY_PATH", &*driver);
    let found = |variables: &[(&str, &Path)]| {
        let (code, report, stderr) = check(&place, "cuda", &[&[driver], variables].concat());
        assert_eq!(code, Some(0), "{stderr}");
        in_use(&report)
    };
    let new = packages.join("cu13/lib");
    assert_eq!(found(&[("VIRTUAL_ENV", &venv)])[1..], [0, 1, 2].map(|i| new.join(TOOLKIT[i])));
    assert_eq!(found(&[("EQUIPOISE_CUDA_PATH", &packages)])[1..], [0, 1, 2].map(|i| new.join(TOOLKIT[i])));
    let named = [("VIRTUAL_ENV", &*venv), ("EQUIPOISE_CUDA_PATH", &toolkit)];
    assert_eq!(found(&named)[1..], [0, 1, 2].map(|i| toolkit.join("lib64").join(TOOLKIT[i])));
    // A driver of CUDA 12 gets CUDA 12's, though newer ones lie beside them; one of CUDA 14 the newest that there are.
    let old = [
        ("VIRTUAL_ENV", &*venv),
        ("FAKE_CUDA_VERSION", Path::new("12080")),
        ("FAKE_NVRTC_VERSION", Path::new("12080")),
    ];
    let expected = ["cublas/lib/libcublas.so.12", "cublas/lib/libcublasLt.so.12", "cuda_nvrtc/lib/libnvrtc.so.12"];
    assert_eq!(found(&old)[1..], expected.map(|name| packages.join(name)));
    let newer = [("VIRTUAL_ENV", &*venv), ("FAKE_CUDA_VERSION", Path::new("14010"))];
    assert_eq!(found(&newer)[1], new.join(TOOLKIT[0]));
    // NVRTC without its builtins.
    std::fs::remove_file(new.join(TOOLKIT[3])).unwrap();
    let (code, _, stderr) = check(&place, "cuda", &[driver, ("EQUIPOISE_CUDA_PATH", &packages)]);
    assert!(code == Some(2) && stderr.contains("has no libnvrtc-builtins.so.13.0 beside it"), "{stderr}");
    let (code, _, stderr) = check(&place, "cuda", &[driver, ("EQUIPOISE_CUDA_PATH", &place.path("nowhere"))]);
    assert!(
        code == Some(2) && stderr.contains("a library of CUDA is missing") && stderr.contains("nowhere"),
        "{stderr}"
    );
}

/// The library that programs are linked with is no driver: the one behind it is taken, and without one there is no GPU.
#[test]
fn a_stub_is_no_driver() {
    let place = Workplace::new();
    let Some(whole) = libraries(&place) else { return };
    let stubs = build(&place, "empty", &[DRIVER], &answers(34));
    let paths = std::env::join_paths([&stubs, &whole]).unwrap();
    let (code, report, stderr) = check(&place, "cuda", &[("LD_LIBRARY_PATH", Path::new(&paths))]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(in_use(&report)[0], whole.join(DRIVER));
    let (code, _, stderr) = check(&place, "cuda", &[("LD_LIBRARY_PATH", &stubs)]);
    assert!(code == Some(2) && stderr.contains("there is only a stub"), "{stderr}");
    assert!(stderr.contains(&*stubs.join(DRIVER).to_string_lossy()), "{stderr}");
    let (code, report, stderr) = check(&place, "auto", &[("LD_LIBRARY_PATH", &stubs)]);
    assert!(code == Some(0) && !stderr.contains("the CPU is taken instead"), "{stderr}");
    assert!(report["device"].as_str().unwrap().starts_with("cpu"), "{report}");
}

/// All that is called, answering with this code.
fn answers(code: u32) -> String {
    let source = include_str!("../src/device/nvidia/functions.rs");
    let tables = source.split("functions! {").skip(1).map(|table| table.split("\n}").next().unwrap());
    let names: Vec<&str> = tables
        .flat_map(|table| table.lines().filter_map(|line| line.trim().split_once('(')))
        .map(|(name, _)| name)
        .filter(|name| ["cu", "nvrtc"].iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    assert!(names.contains(&"cuInit") && names.contains(&"nvrtcGetPTX") && names.contains(&"cublasGemmEx"));
    // The driver says of which version it is, but a stub does not even that.
    let special = ["cuGetErrorName", "cuGetErrorString", "cublasGetStatusName", "nvrtcGetErrorString"];
    let version = if code == 34 { None } else { Some("cuDriverGetVersion") };
    let plain = names.iter().filter(|name| !special.contains(name) && Some(**name) != version);
    let mut all: Vec<String> = plain.map(|name| format!("int {name}(void) {{ return {code}; }}")).collect();
    if version.is_some() {
        all.push("int cuDriverGetVersion(int *version) { *version = 13000; return 0; }".into());
    }
    let name = match code {
        100 => "CUDA_ERROR_NO_DEVICE",
        803 => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        _ => "CUDA_ERROR_OTHER",
    };
    for (function, text) in [("cuGetErrorName", name), ("cuGetErrorString", "why")] {
        all.push(format!("int {function}(int e, const char **text) {{ *text = \"{text}\"; return 0; }}"));
    }
    all.extend(special[2..].iter().map(|function| format!("const char *{function}(int e) {{ return 0; }}")));
    all.join("\n")
}

/// Libraries that are there under their names, and are none or do not work.
#[test]
fn a_driver_that_does_not_work_is_an_error_and_under_auto_a_warning() {
    let place = Workplace::new();
    let Some(whole) = libraries(&place) else { return };
    let none = build(&place, "none", &[DRIVER], "int nothing(void) { return 0; }");
    let with = |folder: &Path, device: &str| {
        let toolkit = ("EQUIPOISE_CUDA_PATH", &*whole);
        check(&place, device, &[("LD_LIBRARY_PATH", folder), toolkit])
    };
    let (code, _, stderr) = with(&none, "cuda");
    assert!(code == Some(2) && stderr.contains("is something else under its name"), "{stderr}");
    let (code, _, stderr) = with(&none, "auto");
    assert!(code == Some(0) && stderr.contains("the CPU is taken instead"), "{stderr}");
    // 803 is the code of a driver of another version than the kernel's, 7777 one that is not known here.
    for (code, message, warned) in [
        (100, "there is no NVIDIA GPU", false),
        (803, "are of different versions", true),
        (7777, "CUDA_ERROR_OTHER (why)", true),
    ] {
        let folder = build(&place, &format!("answers-{code}"), &[DRIVER], &answers(code));
        let (exit, _, stderr) = with(&folder, "cuda");
        assert!(exit == Some(2) && stderr.contains(message), "{stderr}");
        assert!(stderr.contains(&*folder.join(DRIVER).to_string_lossy()), "the files are named: {stderr}");
        let (exit, _, stderr) = with(&folder, "auto");
        assert_eq!(exit, Some(0), "{stderr}");
        assert_eq!(stderr.contains("the CPU is taken instead"), warned, "{stderr}");
    }
}

/// A library that ends the process cannot be survived; `-v` has said before which files are used.
#[test]
fn a_library_that_dies_was_named_before() {
    let place = Workplace::new();
    let Some(whole) = libraries(&place) else { return };
    let dies = "void abort(void); int cublasCreate_v2(void **handle) { abort(); }\n";
    let rest = answers(0).replace("int cublasCreate_v2(void) { return 0; }\n", dies);
    let folder = build(&place, "dies", &TOOLKIT[..2], &rest);
    link(&whole, &folder, &TOOLKIT[2..]);
    let mut command = place.command(&["check", "trial.yaml", "-v", "--set", "device=cuda"]);
    let output = command.env("LD_LIBRARY_PATH", &whole).env("EQUIPOISE_CUDA_PATH", &folder).output().unwrap();
    assert_eq!(output.status.code(), None, "a signal ended it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&*folder.join(TOOLKIT[0]).to_string_lossy()), "{stderr}");
}

/// `equipoise-gpu`, where it was built: `just test-cuda` builds it.
#[expect(clippy::print_stderr, reason = "what was skipped must be seen")]
fn gpu_program() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap().parent()?.parent()?.join("examples/equipoise-gpu");
    if program.exists() {
        return Some(program);
    }
    eprintln!("skipped: {} is not there; `just test-cuda` builds it", program.display());
    None
}

/// Comparisons and a profile by NVIDIA's events, through NVIDIA's functions; a kernel that hangs ends with its name.
#[test]
fn comparisons_and_profiles_go_through_nvidias_functions() {
    let place = Workplace::new();
    let (Some(whole), Some(program)) = (libraries(&place), gpu_program()) else { return };
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).env("EQUIPOISE_CUDA_PATH", &whole).env("LD_LIBRARY_PATH", &whole);
        let output = command.env("XDG_CACHE_HOME", place.path("kernels")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let stdout = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (output.status.code(), lines, stderr)
    };
    let check = ["gpu-check", "--json", "--small", "--only", "optimizer"];
    let (code, lines, stderr) = run(&check);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(lines[0]["event"], "opened");
    let paths: Vec<&str> = lines[0]["libraries"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    assert_eq!(paths, [DRIVER, TOOLKIT[0], TOOLKIT[1], TOOLKIT[2]].map(|name| whole.join(name).display().to_string()));
    assert!(lines.iter().any(|line| line["event"] == "begin") && lines.iter().any(|line| line["passed"] == true));

    let (code, lines, stderr) = run(&[&check[..], &["--hang-in", "adamw", "--each-limit", "2"]].concat());
    assert_eq!(code, Some(4), "{stderr}");
    let failure = lines.last().unwrap()["failure"].as_str().unwrap();
    assert!(failure.starts_with("no answer after 2 s") && failure.contains("adamw"), "{failure}");

    let (code, lines, stderr) = run(&[&check[..], &["--fail-in", "adamw"]].concat());
    assert_eq!(code, Some(3), "{stderr}");
    assert!(lines.last().unwrap()["failure"].as_str().unwrap().contains("CUDA_ERROR_ILLEGAL_ADDRESS"), "{lines:?}");

    let small = ["--shape", "tiny", "--rows", "1", "--length", "16", "--warmup", "1", "--steps", "1", "--no-peaks"];
    let (code, lines, stderr) = run(&[&["gpu-bench", "--json"], &small[..]].concat());
    assert_eq!(code, Some(0), "{stderr}");
    let pieces = lines[1]["profile"]["pieces"].as_array().unwrap();
    let kernels: Vec<_> = pieces.iter().filter(|piece| piece["kind"] == "kernel").collect();
    assert!(kernels.len() > 5 && kernels.iter().all(|piece| piece["seconds"].as_f64().unwrap() > 0.0), "{pieces:?}");
    let timed: f64 = pieces.iter().map(|piece| piece["seconds"].as_f64().unwrap()).sum();
    assert!(timed <= lines[1]["profile"]["step_seconds"].as_f64().unwrap(), "{lines:?}");
}
