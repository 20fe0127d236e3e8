//! A GPU's memory: buffers that return to the arena when they are dropped.

use super::GpuFacts;
use super::arena::{ALIGNMENT, Arena, Term};
use super::driver::{Address, Driver, Launch, MatrixProduct, Program};
use candle_core::{Result, bail};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An open GPU; clones share it.
#[derive(Clone)]
pub struct Gpu(Arc<Open>);

struct Open {
    driver: Box<dyn Driver>,
    arena: Mutex<Arena>,
    refusal: Mutex<Option<Refusal>>,
    /// Pinned memory that nobody uses: sizes and addresses.
    pinned: Mutex<Vec<(usize, Address)>>,
}

/// An allocation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Bytes that were asked for; 0 where it was the driver that asked itself.
    pub wanted: usize,
    /// Bytes that the arena held.
    pub reserved: usize,
}

/// How much memory a GPU's arena has had, with what its libraries hold from the beginning on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// The most bytes in use at a time.
    pub peak: usize,
    /// The most bytes that were taken from the driver at a time.
    pub peak_reserved: usize,
    /// The bytes that are taken from the driver now.
    pub reserved: usize,
    /// Of each of these, what cuBLAS works in.
    pub workspace: usize,
}

impl Gpu {
    /// A GPU behind a driver.
    pub fn new(driver: Box<dyn Driver>) -> Self {
        Self(Arc::new(Open { driver, arena: Mutex::default(), refusal: Mutex::default(), pinned: Mutex::default() }))
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn facts(&self) -> Result<GpuFacts> {
        self.0.driver.facts()
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.0.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of undefined content, at a multiple of 256 bytes, for some operations.
    ///
    /// # Errors
    /// When there is not enough; [`Self::take_refusal`] tells then.
    pub fn allocate(&self, bytes: usize) -> Result<Memory> {
        self.allocate_for(bytes, Term::Short)
    }

    /// As [`Self::allocate`], for as long as is said.
    ///
    /// # Errors
    /// As [`Self::allocate`].
    pub fn allocate_for(&self, bytes: usize, term: Term) -> Result<Memory> {
        let rounded = Arena::rounded(bytes);
        let mut arena = self.arena();
        let mut address = arena.take(rounded, term);
        if address.is_none() {
            self.grow(&mut arena, rounded)?;
            address = arena.take(rounded, term);
        }
        let Some(address) = address else { bail!("internal: a fresh segment does not hold what it was made for") };
        drop(arena);
        Ok(Memory { gpu: self.clone(), address, bytes, rounded })
    }

    /// Adds a segment of at least so many bytes; gives back unused ones where the driver has no more.
    fn grow(&self, arena: &mut Arena, bytes: usize) -> Result<()> {
        let driver = &self.0.driver;
        let wanted = if driver.buffers_apart() { bytes } else { driver.segment_bytes(bytes) };
        let mut got = driver.allocate(wanted)?.map(|address| (address, wanted));
        if got.is_none() {
            self.give_back_unused(arena);
            got = driver.allocate(bytes)?.map(|address| (address, bytes));
        }
        let Some((address, size)) = got else {
            let refusal = self.refused(bytes, arena);
            let mib = |bytes: usize| bytes >> 20;
            bail!(
                "CUDA_ERROR_OUT_OF_MEMORY: {} MiB were asked for, {} MiB are held",
                mib(refusal.wanted),
                mib(refusal.reserved)
            );
        };
        if !address.is_multiple_of(ALIGNMENT as Address) {
            bail!("internal: the driver gave memory at {address:#x}");
        }
        arena.add(address, size);
        Ok(())
    }

    /// Keeps in mind that there was no memory.
    fn refused(&self, wanted: usize, arena: &Arena) -> Refusal {
        let refusal = Refusal { wanted, reserved: arena.reserved() };
        *self.0.refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
        refusal
    }

    fn give_back_unused(&self, arena: &mut Arena) {
        for address in arena.remove_unused() {
            // SAFETY: the arena had it from the driver, and nothing of it is taken.
            #[expect(unsafe_code, reason = "addresses cannot be checked")]
            unsafe {
                self.0.driver.free(address);
            };
        }
    }

    /// Takes one piece of this size from the driver, so that buffers of all sizes come from it: what is free of it is never of
    /// the wrong size. That there is no piece so large is no error: most of what there is is taken then, and the rest when it
    /// is needed.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn reserve(&self, bytes: usize) -> Result<()> {
        let mut arena = self.arena();
        if arena.largest_free() >= bytes {
            return Ok(());
        }
        self.give_back_unused(&mut arena);
        let driver = &self.0.driver;
        let wanted = driver.segment_bytes(bytes.next_multiple_of(ALIGNMENT));
        let mut got = driver.allocate(wanted)?.map(|address| (address, wanted));
        if got.is_none() {
            // Not all: the driver needs some for itself.
            let free = usize::try_from(driver.facts()?.free).unwrap_or(usize::MAX);
            let most = wanted.min((free - free / 16) / ALIGNMENT * ALIGNMENT);
            got = if most > 0 { driver.allocate(most)?.map(|address| (address, most)) } else { None };
        }
        if let Some((address, size)) = got {
            arena.add(address, size);
        }
        Ok(())
    }

    /// Bytes that could still be allocated: what the driver has, and what the arena holds and nobody uses.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub fn free_bytes(&self) -> Result<u64> {
        let unused = self.arena().unused() as u64;
        Ok(self.facts()?.free + unused)
    }

    /// Gives segments of which nothing is in use back to the driver.
    pub fn trim(&self) {
        self.give_back_unused(&mut self.arena());
    }

    /// Pinned memory of the CPU; some that is free is taken again.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn allocate_pinned(&self, bytes: usize) -> Result<PinnedMemory> {
        let mut free = self.0.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let found = (0..free.len()).filter(|&i| free[i].0 >= bytes).min_by_key(|&i| free[i].0);
        let (size, address) = match found {
            Some(place) => free.swap_remove(place),
            None => (bytes.max(1), self.0.driver.allocate_pinned(bytes.max(1))?),
        };
        Ok(PinnedMemory { gpu: self.clone(), address, size })
    }

    /// The last allocation that failed, once.
    pub fn take_refusal(&self) -> Option<Refusal> {
        self.0.refusal.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// How much memory was in use.
    pub fn memory(&self) -> GpuMemory {
        let (arena, workspace) = (self.arena(), self.0.driver.workspace_bytes());
        let (peak, peak_reserved) = arena.peaks();
        GpuMemory {
            peak: peak + workspace,
            peak_reserved: peak_reserved + workspace,
            reserved: arena.reserved() + workspace,
            workspace,
        }
    }

    /// Forgets how much memory was in use before.
    pub fn reset_peaks(&self) {
        self.arena().reset_peaks();
    }

    /// Memory that holds these bytes.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn upload(&self, bytes: &[u8]) -> Result<Memory> {
        let memory = self.allocate(bytes.len())?;
        memory.write(0, bytes)?;
        Ok(memory)
    }

    /// Memory that holds these numbers.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn upload_numbers<T: Plain>(&self, numbers: &[T]) -> Result<Memory> {
        self.upload(T::bytes(numbers))
    }

    /// Memory of zeros.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn zeros(&self, bytes: usize) -> Result<Memory> {
        let memory = self.allocate(bytes)?;
        memory.zero()?;
        Ok(memory)
    }

    /// Runs a kernel.
    ///
    /// # Errors
    /// When the compiler or the driver refuses.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point to is there.
    #[expect(unsafe_code, reason = "arguments cannot be checked")]
    pub unsafe fn launch(&self, launch: Launch<'_>) -> Result<()> {
        // SAFETY: as the caller says.
        self.noting_refusal(unsafe { self.0.driver.launch(launch) })
    }

    /// Multiplies matrices.
    ///
    /// # Errors
    /// When they do not fit each other, or the library refuses.
    ///
    /// # Safety
    /// The matrices are within memory.
    #[expect(unsafe_code, reason = "addresses cannot be checked")]
    pub unsafe fn multiply(&self, product: &MatrixProduct) -> Result<()> {
        if product.sizes().is_none() {
            bail!("internal: these matrices cannot be multiplied: {product:?}");
        }
        // SAFETY: as the caller says.
        self.noting_refusal(unsafe { self.0.driver.multiply(product) })
    }

    /// Kernels and cuBLAS take memory of their own, past the arena: that there is none left is a refusal too.
    fn noting_refusal(&self, done: Result<()>) -> Result<()> {
        let full = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        done.inspect_err(|error| {
            let text = error.to_string();
            if full.iter().any(|word| text.contains(word)) {
                self.refused(0, &self.arena());
            }
        })
    }

    /// Compiles and loads a program.
    ///
    /// # Errors
    /// When the compiler or the driver refuses.
    pub fn prepare(&self, program: &Program, kernel: &str) -> Result<()> {
        self.0.driver.prepare(program, kernel)
    }

    /// Waits until all work is done.
    ///
    /// # Errors
    /// When any of it failed.
    pub fn synchronize(&self) -> Result<()> {
        self.0.driver.synchronize()
    }

    /// As [`Driver::take_marks`].
    ///
    /// # Errors
    /// When any work failed.
    pub fn take_marks(&self) -> Result<Vec<f64>> {
        self.0.driver.take_marks()
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        for (_, address) in self.pinned.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // SAFETY: it was had from the driver, and nobody uses it.
            #[expect(unsafe_code, reason = "addresses cannot be checked")]
            unsafe {
                self.driver.free_pinned(address);
            };
        }
        let arena = self.arena.get_mut().unwrap_or_else(PoisonError::into_inner);
        for address in arena.remove_unused() {
            // SAFETY: the arena had it from the driver, and nothing of it is taken.
            #[expect(unsafe_code, reason = "addresses cannot be checked")]
            unsafe {
                self.driver.free(address);
            };
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({:?})", self.0.driver)
    }
}

/// Numbers whose bytes are all there is to them.
pub trait Plain: Copy + Default {
    /// Their bytes.
    fn bytes(numbers: &[Self]) -> &[u8];
    /// Their bytes, to be written.
    fn bytes_mut(numbers: &mut [Self]) -> &mut [u8];
}

macro_rules! plain {
    ($($number:ty),*) => {$(
        impl Plain for $number {
            #[expect(unsafe_code, reason = "the standard library has no safe view of a slice's bytes")]
            fn bytes(numbers: &[Self]) -> &[u8] {
                // SAFETY: the numbers have no padding, and bytes no alignment.
                unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
            }

            #[expect(unsafe_code, reason = "the standard library has no safe view of a slice's bytes")]
            fn bytes_mut(numbers: &mut [Self]) -> &mut [u8] {
                // SAFETY: as above, and all bytes are valid numbers.
                unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
            }
        }
    )*};
}
plain!(u8, u16, u32, u64, f32, f64, half::bf16);

/// A block of a GPU's memory; it returns to the arena when it is dropped. Work that was asked for before that still finds it:
/// whoever takes it next asks for its own work later.
#[derive(Debug)]
pub struct Memory {
    gpu: Gpu,
    address: Address,
    bytes: usize,
    rounded: usize,
}

impl Memory {
    /// Where it begins.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Its length.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The GPU that it is on.
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    fn check(&self, first: usize, bytes: usize) -> Result<()> {
        if first.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            bail!("internal: {bytes} bytes at {first} of a buffer of {}", self.bytes);
        }
        Ok(())
    }

    /// Copies bytes into it.
    ///
    /// # Errors
    /// When they go beyond its end, or the driver refuses.
    pub fn write(&self, first: usize, bytes: &[u8]) -> Result<()> {
        self.check(first, bytes.len())?;
        // SAFETY: it is within this block, as was checked.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.upload(bytes, self.address + first as Address)
        }
    }

    /// The numbers from byte `first` on, once all work is done.
    ///
    /// # Errors
    /// When they go beyond its end, or work failed.
    pub fn read<T: Plain>(&self, first: usize, count: usize) -> Result<Vec<T>> {
        self.check(first, count * size_of::<T>())?;
        let mut numbers = vec![T::default(); count];
        // SAFETY: it is within this block, as was checked.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.download(self.address + first as Address, T::bytes_mut(&mut numbers))?;
        };
        Ok(numbers)
    }

    /// Copies the beginning of another block into it, from byte `first` on.
    ///
    /// # Errors
    /// When one of them is too short, or the driver refuses.
    pub fn copy_from(&self, first: usize, other: &Self, bytes: usize) -> Result<()> {
        self.check(first, bytes)?;
        other.check(0, bytes)?;
        // SAFETY: both are within their blocks, as was checked.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.copy(other.address, self.address + first as Address, bytes)
        }
    }

    /// Writes zeros all over it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn zero(&self) -> Result<()> {
        // SAFETY: it is this block.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.zero(self.address, self.bytes)
        }
    }
}

/// Pinned memory of the CPU: a device copies to and from it by itself, in the order of its other work. Dropped, it is kept for
/// the next who asks.
#[derive(Debug)]
pub struct PinnedMemory {
    gpu: Gpu,
    address: Address,
    size: usize,
}

impl PinnedMemory {
    /// Copies the beginning of a block of the device into it.
    ///
    /// # Errors
    /// When one of them is too short, or the driver refuses.
    pub fn copy_from(&self, memory: &Memory, bytes: usize) -> Result<()> {
        memory.check(0, bytes)?;
        if bytes > self.size {
            bail!("internal: {bytes} bytes for {} of pinned memory", self.size);
        }
        // SAFETY: both are long enough, as was checked.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.copy(memory.address, self.address, bytes)
        }
    }

    /// Copies its beginning to the beginning of a block of the device.
    ///
    /// # Errors
    /// When one of them is too short, or the driver refuses.
    pub fn copy_to(&self, memory: &Memory, bytes: usize) -> Result<()> {
        memory.check(0, bytes)?;
        if bytes > self.size {
            bail!("internal: {bytes} bytes of {} of pinned memory", self.size);
        }
        // SAFETY: both are long enough, as was checked.
        #[expect(unsafe_code, reason = "addresses cannot be checked")]
        unsafe {
            self.gpu.0.driver.copy(self.address, memory.address, bytes)
        }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        // Whoever takes it next asks for its copies after those of this one.
        let mut free = self.gpu.0.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        free.push((self.size, self.address));
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let mut arena = self.gpu.arena();
        arena.give_back(self.address, self.rounded);
        if self.gpu.0.driver.buffers_apart() {
            self.gpu.give_back_unused(&mut arena);
        }
    }
}
