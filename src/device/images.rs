//! Compiled kernels: in which form, for which architecture, and where they are kept.

use super::driver::Program;
use candle_core::{Result, bail};
use std::path::{Path, PathBuf};

/// The oldest compute capability that the kernels run on, as 10 · major + minor.
const LEAST: u32 = 75;

/// What kernels are compiled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    /// 10 · major + minor.
    architecture: u32,
    /// The GPU's own code, which any driver of the same CUDA's major version takes. Else PTX, which a driver translates for each
    /// newer GPU, and refuses where it is of a newer compiler than itself.
    is_code: bool,
}

impl Target {
    /// The best for a GPU of this compute capability by a compiler that knows these architectures.
    pub fn new((major, minor): (u32, u32), known: &[u32]) -> Result<Self> {
        let own = 10 * major + minor;
        match known.iter().filter(|&&architecture| (LEAST..=own).contains(&architecture)).max() {
            Some(&architecture) => Ok(Self { architecture, is_code: architecture == own }),
            None => bail!("no kernel for compute capability {major}.{minor}"),
        }
    }

    /// Whether it is a GPU's own code, not PTX.
    pub const fn is_code(self) -> bool {
        self.is_code
    }

    /// What compilers call it.
    pub fn name(self) -> String {
        format!("{}_{}", if self.is_code { "sm" } else { "compute" }, self.architecture)
    }
}

/// A program's image: of the cache on the disk, or fresh from `compile`. `compiler` has its version: a driver may refuse what a
/// newer one made, and must not get it from the cache once there is an older.
pub(super) fn compiled(
    program: &Program,
    target: Target,
    compiler: &str,
    compile: impl Fn(&Program, Target) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let (source, target_name) = (program.text(), target.name());
    let key =
        blake3::hash(format!("{}\n{compiler}\n{target_name}\n{source}", env!("CARGO_PKG_VERSION")).as_bytes()).to_hex();
    let file = folder().map(|folder| folder.join(format!("{}-{target_name}-{key}", program.name)));
    if let Some(image) = file.as_deref().and_then(read) {
        return Ok(image);
    }
    let image = compile(program, target)?;
    if let Some(file) = &file {
        write(file, &image);
    }
    Ok(image)
}

/// `$XDG_CACHE_HOME/equipoise/kernels`, or `~/.cache/equipoise/kernels`.
fn folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    Some(cache?.join("equipoise/kernels"))
}

/// A file of the cache: a hash of the image, and the image. One that was cut short or changed is not believed.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (hash, image) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (hash == blake3::hash(image).as_bytes()).then(|| image.to_owned())
}

/// That nothing can be kept is not an error: the next process compiles again.
fn write(file: &Path, image: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let aside = file.with_extension(format!("{}.tmp", std::process::id()));
    let bytes = [blake3::hash(image).as_bytes(), image].concat();
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&aside, bytes))
        .and_then(|()| std::fs::rename(&aside, file));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&aside);
        tracing::debug!(%error, file = %file.display(), "compiled kernels could not be kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_gets_its_own_code_or_the_newest_ptx_that_it_can_run() {
        let known = [70, 75, 80, 86, 89, 90];
        for (capability, expected) in [
            ((7, 5), "sm_75"),
            ((8, 0), "sm_80"),
            ((8, 7), "compute_86"),
            ((8, 9), "sm_89"),
            ((9, 0), "sm_90"),
            ((12, 0), "compute_90"),
        ] {
            assert_eq!(Target::new(capability, &known).unwrap().name(), expected);
        }
        assert_eq!(Target::new((12, 0), &[75, 100, 120, 121]).unwrap().name(), "sm_120");
        let error = Target::new((7, 0), &known).unwrap_err().to_string();
        assert!(error.contains("no kernel for compute capability 7.0"), "{error}");
    }

    #[test]
    fn what_was_kept_is_believed_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below/x");
        let image = b"\x7fELF\n\0\xff";
        write(&file, image);
        assert_eq!(read(&file).as_deref(), Some(&image[..]));
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 3]).unwrap();
        assert_eq!(read(&file), None);
        assert_eq!(read(&folder.path().join("none")), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
