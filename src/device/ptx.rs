//! Compiled kernels: for which architecture, and where they are kept.

use super::driver::Program;
use candle_core::{Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The architectures that PTX is made for. A driver translates it for every GPU that is newer, so a GPU that NVRTC has not
/// heard of yet gets the last.
const ARCHITECTURES: [((u32, u32), &str); 5] = [
    ((7, 5), "compute_75"),
    ((8, 0), "compute_80"),
    ((8, 6), "compute_86"),
    ((8, 9), "compute_89"),
    ((9, 0), "compute_90"),
];

/// What was compiled in this process, by its key. The same source always gives the same, so no caller can tell that it is kept.
static COMPILED: Mutex<BTreeMap<String, Arc<str>>> = Mutex::new(BTreeMap::new());

/// The newest architecture that a GPU of this compute capability can run.
pub(super) fn architecture(capability: (u32, u32)) -> Result<&'static str> {
    match ARCHITECTURES.iter().rev().find(|(least, _)| *least <= capability) {
        Some((_, architecture)) => Ok(architecture),
        None => bail!("no kernel for compute capability {}.{}", capability.0, capability.1),
    }
}

/// A program's PTX: of this process, of the cache on the disk, or fresh from `compile(source, architecture, name)`. `compiler`
/// has its version: a driver refuses the PTX of a newer one, and must not get it from the cache once there is an older.
pub(super) fn compiled(
    program: &Program,
    architecture: &'static str,
    compiler: &str,
    compile: impl Fn(&str, &'static str, &str) -> Result<String>,
) -> Result<String> {
    let source = program.text();
    let key = blake3::hash(format!("{}\n{compiler}\n{architecture}\n{source}", env!("CARGO_PKG_VERSION")).as_bytes())
        .to_hex();
    let mut kept = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(ptx) = kept.get(key.as_str()) {
        return Ok(ptx.to_string());
    }
    let file = folder().map(|folder| folder.join(format!("{}-{architecture}-{key}.ptx", program.name)));
    let ptx = if let Some(ptx) = file.as_deref().and_then(read) {
        ptx
    } else {
        let ptx = compile(&source, architecture, program.name)?;
        if let Some(file) = &file {
            write(file, &ptx);
        }
        ptx
    };
    kept.insert(key.to_string(), ptx.clone().into());
    Ok(ptx)
}

/// `$XDG_CACHE_HOME/equipoise/kernels`, or `~/.cache/equipoise/kernels`.
fn folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    Some(cache?.join("equipoise/kernels"))
}

/// A file of the cache: a hash of the text, and the text. One that was cut short or changed is not believed.
fn read(file: &Path) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let (hash, ptx) = text.split_once('\n')?;
    (hash == blake3::hash(ptx.as_bytes()).to_hex().as_str()).then(|| ptx.to_owned())
}

/// That nothing can be kept is no error: the next process compiles again.
fn write(file: &Path, ptx: &str) {
    let Some(folder) = file.parent() else { return };
    let aside = file.with_extension(format!("{}.tmp", std::process::id()));
    let text = format!("{}\n{ptx}", blake3::hash(ptx.as_bytes()).to_hex());
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&aside, text))
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
    fn a_gpu_gets_the_newest_architecture_that_it_can_run() {
        for (capability, expected) in [
            ((7, 5), "compute_75"),
            ((8, 0), "compute_80"),
            ((8, 7), "compute_86"),
            ((8, 9), "compute_89"),
            ((9, 0), "compute_90"),
            ((12, 0), "compute_90"),
        ] {
            assert_eq!(architecture(capability).unwrap(), expected);
        }
        assert!(architecture((7, 0)).unwrap_err().to_string().contains("no kernel for compute capability 7.0"));
    }

    #[test]
    fn what_was_kept_is_believed_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below/x.ptx");
        write(&file, ".version 8.0\n.entry x\n");
        assert_eq!(read(&file).as_deref(), Some(".version 8.0\n.entry x\n"));
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, &text[..text.len() - 3]).unwrap();
        assert_eq!(read(&file), None);
        assert_eq!(read(&folder.path().join("none.ptx")), None);
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }
}
