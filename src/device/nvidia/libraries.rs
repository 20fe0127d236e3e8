//! Where NVIDIA's libraries are found, and how they are loaded: the driver, cuBLAS with cuBLASLt, and NVRTC with its builtins.
//!
//! Each set comes from one place. A libcublas that is loaded by name may get the libcublasLt of another installation, and fails
//! with the first product then; some versions of NVRTC do not look for their builtins in their own folder. So both files of a set are loaded
//! by absolute path from one folder, for the driver's CUDA major version first, then for older ones. A library stays loaded as
//! long as the process runs.

#![expect(unsafe_code, reason = "a library is code, and so is each function in it")]

use super::folders::{Folders, split_variable, system_folders};
use super::functions::{Blas, BlasLt, Code, Cuda, Nvrtc};
use candle_core::{Result, bail};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::collections::BTreeSet;
use std::ffi::{CStr, c_int, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest CUDA whose libraries are used.
const OLDEST: u32 = 12;
/// The driver's library: `libcuda.so` without a number may be the stub that programs are linked with.
const DRIVER: &str = "libcuda.so.1";
/// What all functions of that stub return.
const STUB: Code = 34;

/// All that is called of NVIDIA's, and where it was found.
pub struct Libraries {
    pub cuda: Cuda,
    pub blas: Blas,
    pub nvrtc: Nvrtc,
    /// The newest CUDA that the driver runs.
    pub version: (u32, u32),
    pub paths: Paths,
}

/// Names of libraries, with their versions, and their files.
#[derive(Debug, Clone, Default)]
pub struct Paths(pub Vec<(String, PathBuf)>);

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, path)) in self.0.iter().enumerate() {
            write!(f, "{}{name} {}", if i == 0 { "" } else { ", " }, path.display())?;
        }
        Ok(())
    }
}

/// Why there is no driver.
pub enum NoDriver {
    /// There is no file, or only a stub.
    NotFound(String),
    /// There is one, and it does not work.
    Broken(String),
}

impl From<NoDriver> for candle_core::Error {
    fn from(why: NoDriver) -> Self {
        let (NoDriver::NotFound(text) | NoDriver::Broken(text)) = why;
        Self::Msg(text)
    }
}

/// Loads all libraries.
///
/// # Errors
/// When one is missing or does not load, or all that were found are newer than the driver.
pub fn load() -> Result<Libraries> {
    let (cuda, path) = driver()?;
    let mut version = 0;
    // SAFETY: it writes one number to where it is told.
    let code = unsafe { (cuda.cuDriverGetVersion)(&raw mut version) };
    if code != 0 {
        bail!("asking the driver for its version: {} [{}]", cuda.describe(code), path.display());
    }
    // Before the toolkit is looked for: without a GPU nobody needs it.
    // SAFETY: it asks for nothing.
    let code = unsafe { (cuda.cuInit)(0) };
    if code != 0 {
        bail!("opening the driver: {} [driver {}]", cuda.describe(code), path.display());
    }
    let version = u32::try_from(version).unwrap_or(0);
    let version = (version / 1000, version % 1000 / 10);
    let mut paths = vec![(format!("driver (CUDA {}.{})", version.0, version.1), path)];
    let folders = Folders::new(&|name| std::env::var_os(name));
    let (blas, found) = first(&folders, &CUBLAS, version, load_blas)?;
    paths.extend(found);
    let (nvrtc, found) = first(&folders, &NVRTC, version, load_nvrtc)?;
    paths.extend(found);
    let paths = Paths(paths);
    tracing::info!("CUDA libraries: {paths}");
    Ok(Libraries { cuda, blas, nvrtc, version, paths })
}

/// Loads the driver's library and nothing else.
///
/// # Errors
/// When it is not there, or does not work.
pub fn driver() -> std::result::Result<(Cuda, PathBuf), NoDriver> {
    // By name the loader takes the first of these folders alone, and that may be one of stubs.
    let folders = split_variable("LD_LIBRARY_PATH", &|name| std::env::var_os(name)).into_iter().chain(system_folders());
    let known = folders.map(|folder| folder.join(DRIVER)).filter(|path| path.exists());
    let (mut tried, mut stubs, mut broken) = (BTreeSet::new(), Vec::new(), Vec::new());
    for candidate in std::iter::once(PathBuf::from(DRIVER)).chain(known) {
        let library = match open(&candidate) {
            Ok(Some(library)) => library,
            Ok(None) => continue,
            Err(why) => {
                broken.push(why.replace("that does not load: ", "that does not load: the driver, "));
                continue;
            }
        };
        let path = path_of(&library, c"cuInit").unwrap_or(candidate);
        if !tried.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
            continue;
        }
        match Cuda::look_up(&library) {
            Ok(cuda) if is_stub(&cuda, &path) => stubs.push(path.display().to_string()),
            Ok(cuda) => {
                std::mem::forget(library);
                return Ok((cuda, path));
            }
            Err(function) => {
                broken.push(format!(
                    "CUDA library without a function: the driver, {}, has no {function}",
                    path.display()
                ));
            }
        }
    }
    match (broken.is_empty(), stubs.is_empty()) {
        (false, _) => Err(NoDriver::Broken(broken.join("; "))),
        (true, false) => {
            let text =
                format!("CUDA library not found: the driver, {DRIVER}: there is only a stub, {}", stubs.join(", "));
            Err(NoDriver::NotFound(text))
        }
        (true, true) => Err(NoDriver::NotFound(format!("CUDA library not found: the driver, {DRIVER}"))),
    }
}

/// Whether it is the library that programs are linked with where there is no driver.
fn is_stub(cuda: &Cuda, path: &Path) -> bool {
    let mut version = 0;
    // SAFETY: it writes one number to where it is told; it needs no call before.
    path.components().any(|part| part.as_os_str() == "stubs")
        || unsafe { (cuda.cuDriverGetVersion)(&raw mut version) } == STUB
}

/// A set of libraries that must be of one version.
struct Set {
    name: &'static str,
    /// The file that is looked for, without its number.
    file: &'static str,
    /// What belongs to it, in words.
    with: &'static str,
    /// The packages of `PyPI` that have it.
    packages: &'static str,
}

const CUBLAS: Set =
    Set { name: "cuBLAS", file: "libcublas.so", with: "libcublasLt beside it", packages: "nvidia-cublas" };
const NVRTC: Set =
    Set { name: "NVRTC", file: "libnvrtc.so", with: "libnvrtc-builtins beside it", packages: "nvidia-cuda-nvrtc" };

/// Where a set is looked for.
#[derive(Clone, Copy)]
enum Place<'a> {
    Folder(&'a Path),
    /// Wherever the system's loader finds it.
    Loader,
}

/// What came of trying; the error says why not.
type Attempt<T> = std::result::Result<T, String>;

/// Names and paths of what was loaded.
type Found = Vec<(String, PathBuf)>;

/// The first set that loads, for the driver's major version or else an older one.
fn first<T>(
    folders: &Folders,
    set: &Set,
    (newest, minor): (u32, u32),
    load: impl Fn(Place<'_>, u32) -> Attempt<Option<(T, Found)>>,
) -> Result<(T, Found)> {
    if newest < OLDEST {
        bail!("the driver runs CUDA {newest}.{minor}, which is older than CUDA {OLDEST}.0");
    }
    let mut failed = Vec::new();
    for major in (OLDEST..=newest).rev() {
        let [named, system] = folders.of(major);
        let places = named.iter().map(|folder| Place::Folder(folder));
        let places = places.chain((!folders.named).then_some(Place::Loader));
        for place in places.chain(system.iter().map(|folder| Place::Folder(folder))) {
            match load(place, major) {
                Ok(Some(found)) => {
                    for why in failed {
                        tracing::warn!("{why}; another one is taken");
                    }
                    return Ok(found);
                }
                Ok(None) => {}
                Err(why) => failed.push(why),
            }
        }
    }
    Err(nothing(folders, set, (newest, minor), &failed))
}

/// Why no set was taken.
fn nothing(folders: &Folders, set: &Set, (newest, minor): (u32, u32), failed: &[String]) -> candle_core::Error {
    if !failed.is_empty() {
        return candle_core::Error::Msg(failed.join("; "));
    }
    let mut newer = (newest + 1..newest + 4).flat_map(|major| {
        folders.of(major).concat().into_iter().map(move |folder| (major, folder.join(format!("{}.{major}", set.file))))
    });
    if let Some((major, path)) = newer.find(|(_, path)| path.exists()) {
        let path = path.display();
        return candle_core::Error::Msg(format!(
            "{} {major} at {path} is newer than the driver's CUDA {newest}.{minor}",
            set.name
        ));
    }
    let mut looked: Vec<String> = Vec::new();
    for folder in
        (OLDEST..=newest).rev().flat_map(|major| folders.of(major).concat()).chain(folders.roots.iter().cloned())
    {
        let shown = folder.display().to_string();
        if !looked.contains(&shown) {
            looked.push(shown);
        }
    }
    if !folders.named {
        looked.push("where the system's loader looks".into());
    }
    let older = if newest > OLDEST { format!(" to {OLDEST}") } else { String::new() };
    candle_core::Error::Msg(format!(
        "CUDA library not found: {} of CUDA {newest}{older}, {}.{newest} with {} (PyPI: {}); looked in {}",
        set.name,
        set.file,
        set.with,
        set.packages,
        looked.join(", ")
    ))
}

/// libcublas and libcublasLt of a place; `None` where they are not there.
fn load_blas(place: Place<'_>, major: u32) -> Attempt<Option<(Blas, Found)>> {
    let [name, lt_name] = ["libcublas.so", "libcublasLt.so"].map(|name| format!("{name}.{major}"));
    // libcublas needs libcublasLt by name, and gets the one that is loaded. So that one goes first, and decides the folder.
    let Some((lt, lt_path)) = (match place {
        Place::Folder(folder) if !folder.join(&name).exists() => None,
        Place::Folder(folder) if !folder.join(&lt_name).exists() => {
            let path = folder.join(&name);
            return Err(format!("CUDA library that does not load: {} has no {lt_name} beside it", path.display()));
        }
        place => open_in(place, &lt_name, c"cublasLtGetProperty")?,
    }) else {
        return Ok(None);
    };
    let path = lt_path.with_file_name(&name);
    let Some(blas) = open(&path)? else {
        return Err(format!("CUDA library that does not load: {} has no {name} beside it", lt_path.display()));
    };
    // Of libcublas' own dependencies: where something else has loaded another libcublasLt before, that one is used.
    let lt_functions = BlasLt::look_up(&blas).map_err(|function| lacks("cuBLASLt", &lt_path, function))?;
    let lt_path = path_of(&blas, c"cublasLtGetProperty").filter(|used| !same_file(used, &lt_path)).unwrap_or(lt_path);
    let functions = Blas::look_up(&blas).map_err(|function| lacks("cuBLAS", &path, function))?;
    std::mem::forget((lt, blas));
    let versions = [functions.cublasGetProperty, lt_functions.cublasLtGetProperty].map(blas_version);
    if versions[0] != versions[1] {
        tracing::warn!(
            "cuBLAS {} ({}) and cuBLASLt {} ({}) are of different versions: products may fail",
            versions[0],
            path.display(),
            versions[1],
            lt_path.display()
        );
    }
    let [version, lt_version] = versions;
    Ok(Some((functions, vec![(format!("cuBLAS {version}"), path), (format!("cuBLASLt {lt_version}"), lt_path)])))
}

/// Major, minor and patch of cuBLAS, as it says itself.
fn blas_version(property: unsafe extern "C" fn(c_int, *mut c_int) -> Code) -> String {
    let ask = |which: c_int| {
        let mut number = 0;
        // SAFETY: it writes one number to where it is told.
        if unsafe { property(which, &raw mut number) } == 0 { number.to_string() } else { "?".to_owned() }
    };
    [0, 1, 2].map(ask).join(".")
}

/// libnvrtc and its builtins of a place; `None` where it is not there.
fn load_nvrtc(place: Place<'_>, major: u32) -> Attempt<Option<(Nvrtc, Found)>> {
    let name = format!("libnvrtc.so.{major}");
    let Some((library, path)) = open_in(place, &name, c"nvrtcVersion")? else { return Ok(None) };
    let functions = Nvrtc::look_up(&library).map_err(|function| lacks("NVRTC", &path, function))?;
    let (major, minor) = functions.version().map_err(|error| format!("{error} [{}]", path.display()))?;
    // NVRTC opens them by name when it compiles, and finds those that are loaded.
    let builtins_name = format!("libnvrtc-builtins.so.{major}.{minor}");
    let beside = path.with_file_name(&builtins_name);
    let builtins = match open(&beside)? {
        Some(builtins) => builtins,
        None => open(Path::new(&builtins_name))?.ok_or_else(|| {
            format!("CUDA library that does not load: {} has no {builtins_name} beside it", path.display())
        })?,
    };
    std::mem::forget((library, builtins));
    Ok(Some((functions, vec![(format!("NVRTC {major}.{minor}"), path)])))
}

fn lacks(library: &str, path: &Path, function: &str) -> String {
    format!("CUDA library without a function: {library}, {}, has no {function}", path.display())
}

/// Opens a library of a place, and says where it is.
fn open_in(place: Place<'_>, name: &str, symbol: &CStr) -> Attempt<Option<(Library, PathBuf)>> {
    let path = match place {
        Place::Folder(folder) => folder.join(name),
        Place::Loader => PathBuf::from(name),
    };
    let Some(library) = open(&path)? else { return Ok(None) };
    let found = match place {
        Place::Folder(_) => path,
        Place::Loader => path_of(&library, symbol).unwrap_or(path),
    };
    Ok(Some((library, found)))
}

/// Opens a library, all of whose symbols must be there: bound later, a missing one would end the process. `None` without a file.
fn open(path: &Path) -> Attempt<Option<Library>> {
    let by_path = path.is_absolute();
    if by_path && !path.exists() {
        return Ok(None);
    }
    // SAFETY: it runs the library's constructors; NVIDIA's do no harm, and what is not NVIDIA's was put there by the user.
    match unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) } {
        Ok(library) => Ok(Some(library)),
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let absent = !by_path && why.contains("No such file") && why.starts_with(&*path.to_string_lossy());
            if absent {
                return Ok(None);
            }
            let why = why.trim_start_matches(&*path.to_string_lossy()).trim_start_matches(": ");
            Err(format!("CUDA library that does not load: {}: {why}", path.display()))
        }
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// The file that a library was loaded from, by one of its functions.
fn path_of(library: &Library, symbol: &CStr) -> Option<PathBuf> {
    // SAFETY: only the address of the symbol is taken.
    let address = unsafe { library.get::<*mut c_void>(symbol.to_bytes_with_nul()) }.ok()?.into_raw();
    let mut about = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: it fills in what it is given; all zeros are a valid value.
    let (code, about) = unsafe { (libc::dladdr(address.cast_const(), about.as_mut_ptr()), about.assume_init()) };
    if code == 0 || about.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's text of the file's name, which stays as long as the library is loaded.
    let name = unsafe { CStr::from_ptr(about.dli_fname) };
    std::path::absolute(std::str::from_utf8(name.to_bytes()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(root: &Path) -> Folders {
        Folders::new(&|name| (name == "EQUIPOISE_CUDA_PATH").then(|| root.into()))
    }

    #[test]
    fn a_set_that_is_nowhere_is_named_with_the_places() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("cu13/lib");
        std::fs::create_dir_all(&folder).unwrap();
        let error = first(&named(place.path()), &NVRTC, (13, 0), load_nvrtc).err().unwrap().to_string();
        assert!(error.starts_with("CUDA library not found: NVRTC of CUDA 13 to 12"), "{error}");
        assert!(error.contains(&*folder.to_string_lossy()) && !error.contains("the system's loader"), "{error}");
    }

    #[test]
    fn sets_that_are_incomplete_or_too_new_are_named() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path();
        std::fs::write(root.join("libcublas.so.13"), b"").unwrap();
        let error = |version| first(&named(root), &CUBLAS, version, load_blas).err().unwrap().to_string();
        assert!(error((13, 0)).contains("libcublas.so.13 has no libcublasLt.so.13 beside it"), "{}", error((13, 0)));
        assert!(error((12, 4)).contains("is newer than the driver's CUDA 12.4"), "{}", error((12, 4)));
        assert!(error((11, 8)).contains("older than CUDA 12.0"), "{}", error((11, 8)));
        std::fs::write(root.join("libcublasLt.so.13"), b"").unwrap();
        assert!(error((13, 0)).starts_with("CUDA library that does not load"), "{}", error((13, 0)));
    }
}
