//! The folders in which NVIDIA's libraries are looked for. Nothing is loaded here.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The folders in which cuBLAS and NVRTC are looked for, in order.
#[derive(Debug)]
pub struct Folders {
    /// Whether these were named by the user, and no other place counts.
    pub named: bool,
    /// Toolkits, virtual environments and plain folders of libraries.
    pub roots: Vec<PathBuf>,
}

impl Folders {
    /// `EQUIPOISE_CUDA_PATH` alone; without it `LD_LIBRARY_PATH`, the virtual environment that is active, and the toolkit that
    /// is named, then the places of the system.
    pub fn new(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let split = |name: &str| split_variable(name, variable);
        let named = split("EQUIPOISE_CUDA_PATH");
        if !named.is_empty() {
            return Self { named: true, roots: named };
        }
        let names = ["LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_HOME", "CUDA_PATH"];
        Self { named: false, roots: names.iter().flat_map(|name| split(name)).collect() }
    }

    /// The folders for a major version: those that the environment names, and those of the system.
    pub fn of(&self, major: u32) -> [Vec<PathBuf>; 2] {
        let named: Vec<PathBuf> = self.roots.iter().flat_map(|root| within(root, major)).collect();
        let mut system = Vec::new();
        if !self.named {
            let toolkits = [format!("/usr/local/cuda-{major}"), "/usr/local/cuda".into(), "/opt/cuda".into()];
            system.extend(toolkits.iter().flat_map(|root| within(Path::new(root), major)));
            system.extend(system_folders());
        }
        let mut seen = BTreeSet::new();
        [named, system].map(|mut folders| {
            folders.retain(|folder| seen.insert(folder.clone()) && folder.is_dir());
            folders
        })
    }
}

/// The paths that a variable of the environment names, made absolute.
pub fn split_variable(name: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let paths = variable(name).unwrap_or_default();
    let paths = std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
    paths.filter_map(|path| std::path::absolute(path).ok()).collect()
}

/// Where libraries may be in a toolkit, a virtual environment, a folder of Python packages, or a folder of libraries.
fn within(root: &Path, major: u32) -> Vec<PathBuf> {
    let target = if cfg!(target_arch = "aarch64") { "targets/sbsa-linux/lib" } else { "targets/x86_64-linux/lib" };
    let mut all: Vec<PathBuf> = vec![root.to_owned()];
    all.extend(["lib64", "lib", target].map(|part| root.join(part)));
    let mut packages = vec![root.to_owned(), root.join("nvidia")];
    for lib in ["lib", "lib64"] {
        let entries = std::fs::read_dir(root.join(lib)).into_iter().flatten().flatten();
        let mut pythons: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
            .flat_map(|entry| ["site-packages", "dist-packages"].map(|folder| entry.path().join(folder).join("nvidia")))
            .collect();
        pythons.sort();
        packages.extend(pythons);
    }
    for package in packages {
        all.push(package.join(format!("cu{major}/lib")));
        all.extend(["cublas/lib", "cuda_nvrtc/lib"].map(|part| package.join(part)));
    }
    all
}

/// Where Linux systems, and what starts containers, put the driver's library; packages of CUDA are there too.
pub fn system_folders() -> Vec<PathBuf> {
    let multiarch =
        if cfg!(target_arch = "aarch64") { "/usr/lib/aarch64-linux-gnu" } else { "/usr/lib/x86_64-linux-gnu" };
    [
        multiarch,
        "/usr/lib64",
        "/usr/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/nvidia/lib",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
    ]
    .map(PathBuf::from)
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
    }

    fn folders(variables: &[(&str, &Path)]) -> Folders {
        Folders::new(&|name| variables.iter().find(|(each, _)| *each == name).map(|(_, path)| path.into()))
    }

    /// The folders that are named, without those of the system.
    fn found(folders: &Folders, major: u32, root: &Path) -> Vec<String> {
        let all =
            folders.of(major).concat().into_iter().filter_map(|path| path.strip_prefix(root).ok().map(shown_path));
        all.filter(|path| !path.is_empty() && path != "venv" && path != "toolkit").collect()
    }

    fn shown_path(path: &Path) -> String {
        path.display().to_string()
    }

    #[test]
    fn environments_and_toolkits_are_looked_through_in_order() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        touch(
            root,
            &[
                "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libcublas.so.13",
                "venv/lib/python3.12/site-packages/nvidia/cublas/lib/libcublas.so.12",
                "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
                "toolkit/lib64/libcublas.so.12",
                "plain/libcublas.so.13",
            ],
        );
        let (venv, toolkit, plain) = (root.join("venv"), root.join("toolkit"), root.join("plain"));
        let all = folders(&[("CUDA_HOME", &toolkit), ("VIRTUAL_ENV", &venv), ("LD_LIBRARY_PATH", &plain)]);
        let packages = "venv/lib/python3.12/site-packages/nvidia";
        let expected = ["plain", "venv/lib"].map(str::to_owned).into_iter().chain([
            format!("{packages}/cu13/lib"),
            format!("{packages}/cublas/lib"),
            format!("{packages}/cuda_nvrtc/lib"),
            "toolkit/lib64".to_owned(),
        ]);
        assert_eq!(found(&all, 13, root), expected.collect::<Vec<_>>());
        assert!(!found(&all, 12, root).contains(&format!("{packages}/cu13/lib")), "another major version's");
        assert!(!all.of(13)[1].is_empty(), "the system's places count too");
    }

    #[test]
    fn a_named_path_is_the_only_one() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        touch(root, &["nvidia/cu13/lib/libcublas.so.13", "other/libcublas.so.13"]);
        let (packages, other) = (root.join("nvidia"), root.join("other"));
        let named = folders(&[("EQUIPOISE_CUDA_PATH", &packages), ("LD_LIBRARY_PATH", &other)]);
        assert_eq!(named.of(13), [vec![packages.clone(), packages.join("cu13/lib")], vec![]]);
    }
}
