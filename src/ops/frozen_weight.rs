//! A frozen, quantized matrix, and how it is dequantized into the layout that products read.
//!
//! No dense copy of a large weight is ever whole in memory: it is packed panel by panel. It does not own the products
//! ([`super::linear`], [`super::linear_cross_entropy`]).

use super::dequantize::dequantize;
use super::element::Element;
use super::gemm::pack::{Shape, pack_rows, pack_transposed};
use super::gemm::{LANES, TILE_COLUMNS};
use super::pool::{Ledger, Pool};
use crate::device::{Device, Memory};
use crate::weight_type::WeightType;
use candle_core::quantized::QTensor;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// Numbers that are looked at for being finite at a time, by each thread.
const FINITE_PART: usize = 1 << 16;

/// Depth that is dequantized at a time for a transposed pack: 48 rows of it stay in the nearest cache, and whole blocks fill it.
const DEPTH_PART: usize = 256;

/// Rows that are dequantized at a time for a pack of rows.
const ROWS_PART: usize = 8;

/// Rows (depth) that [`FrozenWeight::pack_rows`] packs by themselves.
pub(super) const DEPTH_BLOCK: usize = 256;

/// Batches of at most so many rows go row by row through the weight, which never leaves the cache dequantized.
pub(super) const FEW_ROWS: usize = 4;

/// A frozen matrix `[out, in]`, held in a type of blocks or plain floats.
#[derive(Debug, Clone)]
pub struct FrozenWeight {
    storage: Storage,
    rows: usize,
    columns: usize,
}

#[derive(Debug, Clone)]
struct Storage {
    dtype: WeightType,
    blocks: Blocks,
}

#[derive(Debug, Clone)]
enum Blocks {
    Host(Arc<Vec<u8>>),
    Gpu(Arc<Memory>),
}

impl FrozenWeight {
    /// Takes the blocks of a matrix `[out, in]`, row after row, little-endian.
    ///
    /// # Errors
    /// When they are not the whole blocks of so many rows.
    pub fn new(dtype: WeightType, (rows, columns): (usize, usize), blocks: Vec<u8>) -> Result<Self> {
        if !columns.is_multiple_of(dtype.block_size()) || dtype.bytes(rows * columns) != blocks.len() {
            bail!("internal: {} bytes of {dtype:?} are not {rows} rows of {columns} numbers", blocks.len());
        }
        Ok(Self { storage: Storage { dtype, blocks: Blocks::Host(Arc::new(blocks)) }, rows, columns })
    }

    /// Takes a matrix `[out, in]` that candle quantized.
    ///
    /// # Errors
    /// When the tensor is no matrix.
    pub fn quantized(tensor: &QTensor) -> Result<Self> {
        Self::new(tensor.dtype().into(), tensor.shape().dims2()?, tensor.data()?.into_owned())
    }

    /// A weight of this shape that holds nothing: for plans, which never multiply.
    pub fn hollow(rows: usize, columns: usize) -> Self {
        Self { storage: Storage { dtype: WeightType::F32, blocks: Blocks::Host(Arc::default()) }, rows, columns }
    }

    /// The same weight on another device.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let Some(gpu) = device.gpu() else { return Ok(self.clone()) };
        let blocks = Blocks::Gpu(Arc::new(gpu.upload(self.host()?)?));
        Ok(Self { storage: Storage { blocks, ..self.storage }, ..*self })
    }

    /// The blocks in the CPU's memory.
    fn host(&self) -> Result<&[u8]> {
        match &self.storage.blocks {
            Blocks::Host(blocks) => Ok(blocks),
            Blocks::Gpu(_) => bail!("internal: a weight on a GPU was asked for on the CPU"),
        }
    }

    /// The blocks in a GPU's memory.
    pub(super) fn memory(&self) -> Result<&Memory> {
        match &self.storage.blocks {
            Blocks::Gpu(memory) => Ok(memory),
            Blocks::Host(_) => bail!("internal: a weight on the CPU was asked for on a GPU"),
        }
    }

    /// Whether all numbers of the weight are finite. CPU only.
    ///
    /// # Errors
    /// When the weight is on another device.
    pub fn is_finite(&self) -> Result<bool> {
        let slice_rows = (FINITE_PART / self.columns.max(1)).max(1);
        let slices = (0..self.rows).into_par_iter().step_by(slice_rows).map(|first| {
            let range = first..(first + slice_rows).min(self.rows);
            let mut part = vec![0f32; range.len() * self.columns];
            self.dequantize_rows(range, &mut part)?;
            Ok(part.iter().all(|x| x.is_finite()))
        });
        slices.try_reduce(|| true, |a, b| Ok(a && b))
    }

    /// Outputs of the layer.
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs of the layer.
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// The type that the weight is held in.
    pub const fn dtype(&self) -> WeightType {
        self.storage.dtype
    }

    /// Bytes of a row.
    pub(super) const fn row_bytes(&self) -> usize {
        self.dtype().bytes(self.columns)
    }

    /// The rows of the given numbers as they are stored, one behind the other. CPU only; all threads work on it.
    ///
    /// # Errors
    /// When an id is not below [`Self::rows`], or the weight is on a GPU.
    pub(super) fn stored_rows(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let (data, row_bytes) = (self.host()?, self.row_bytes());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.rows) {
            bail!("row {id} of a weight of {}", self.rows);
        }
        let mut stored = vec![0; ids.len() * row_bytes];
        let rows = stored.par_chunks_exact_mut(row_bytes.max(1)).zip(ids).with_min_len(64);
        rows.for_each(|(stored, &id)| stored.copy_from_slice(&data[id as usize * row_bytes..][..row_bytes]));
        Ok(stored)
    }

    /// Bytes that the weight takes in memory.
    pub const fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// The matrix in `f32`, whole. CPU only.
    ///
    /// # Errors
    /// When the weight is on a GPU.
    pub fn dequantize(&self) -> Result<Tensor> {
        let mut numbers = vec![0f32; self.rows * self.columns];
        self.dequantize_rows(0..self.rows, &mut numbers)?;
        Tensor::from_vec(numbers, (self.rows, self.columns), &candle_core::Device::Cpu)
    }

    /// The rows of the given numbers: `[..ids] -> [..ids, in]`, without a gradient.
    ///
    /// # Errors
    /// When an id is not below [`Self::rows`], or the weight is on a GPU.
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(self.columns);
        let mut numbers = vec![0f32; ids.elem_count() * self.columns];
        self.embed(&ids.flatten_all()?.to_vec1()?, &mut numbers)?;
        Tensor::from_vec(numbers, shape, &candle_core::Device::Cpu)
    }

    /// The rows of the given numbers in `f32`, `[n, in]`. CPU only; all threads work on it.
    ///
    /// # Errors
    /// When an id is not below [`Self::rows`], or the weight is on a GPU.
    pub fn embed(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let rows = out.par_chunks_exact_mut(self.columns).zip(ids);
        rows.with_min_len(16).try_for_each(|(out, &id)| {
            let id = id as usize;
            self.dequantize_rows(id..id + 1, out)
        })
    }

    /// Writes some rows in `f32` to `out`, which holds `range.len() * in` numbers. CPU only.
    ///
    /// # Errors
    /// When the weight is on another device, or the range is not within it.
    pub fn dequantize_rows(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let (data, row_bytes) = (self.host()?, self.row_bytes());
        if range.end > self.rows || out.len() != range.len() * self.columns {
            bail!("rows {range:?} of a weight of {} do not fit {} numbers", self.rows, out.len());
        }
        let bytes = &data[range.start * row_bytes..range.end * row_bytes];
        dequantize(self.dtype(), bytes, out);
        Ok(())
    }

    /// Writes a stretch of one row in `f32` to `out`; it starts and ends at a multiple of 256, or at the row's end.
    fn dequantize_part(&self, row: usize, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        let dtype = self.dtype();
        let first = row * self.row_bytes() + dtype.bytes(columns.start);
        dequantize(dtype, &self.host()?[first..first + dtype.bytes(columns.len())], out);
        Ok(())
    }

    /// A row of the weight at a time, dequantized into the cache: what token-by-token generation needs.
    pub(super) fn forward_few_rows(&self, x: &[f32], m: usize, out: &mut [f32]) -> Result<()> {
        let (n, k) = (self.rows, self.columns);
        let slice_rows = n.div_ceil(8 * rayon::current_num_threads()).max(1);
        let parts = (0..n.div_ceil(slice_rows))
            .into_par_iter()
            .map(|part| {
                let range = part * slice_rows..((part + 1) * slice_rows).min(n);
                let mut row = vec![0f32; k];
                let mut dots = Vec::with_capacity(range.len() * m);
                for i in range {
                    self.dequantize_rows(i..i + 1, &mut row)?;
                    dots.extend((0..m).map(|b| super::cpu::sum_of_products(&x[b * k..(b + 1) * k], &row)));
                }
                Ok(dots)
            })
            .collect::<Result<Vec<_>>>()?;
        for (i, dots) in parts.iter().flat_map(|part| part.chunks_exact(m)).enumerate() {
            for (b, &dot) in dots.iter().enumerate() {
                out[b * n + i] = dot;
            }
        }
        Ok(())
    }

    /// Packs rows (outputs) as a transposed right side, for `x · Wᵀ`: `[in, rows]` in tiles of columns. All threads work on it.
    ///
    /// # Errors
    /// When the weight is on another device.
    pub fn pack_transposed<E: Element>(&self, rows: Range<usize>, packed: &mut [E], pool: &Pool) -> Result<()> {
        let shape = Shape::new::<E>(self.columns, rows.len());
        let tiles = packed[..shape.numbers()].par_chunks_mut(TILE_COLUMNS * shape.depth);
        tiles.enumerate().try_for_each(|(tile, out)| {
            let (columns, vectors) = shape.tile(tile);
            let width = vectors * LANES;
            let mut part = pool.take::<f32>(columns, DEPTH_PART, TILE_COLUMNS);
            for depth in (0..self.columns).step_by(DEPTH_PART) {
                let range = depth..(depth + DEPTH_PART).min(self.columns);
                let length = range.len();
                for (j, part) in part.chunks_exact_mut(DEPTH_PART).enumerate() {
                    self.dequantize_part(rows.start + tile * TILE_COLUMNS + j, range.clone(), &mut part[..length])?;
                }
                pack_transposed(&part, DEPTH_PART, columns, length, width, &mut out[depth * width..]);
            }
            Ok(())
        })
    }

    /// Packs rows (outputs) as a right side, for `dy · W`: `[rows, in]`, whose depth are the rows, in blocks of
    /// 256 rows, each of them packed by itself. All threads work on it.
    ///
    /// # Errors
    /// When the weight is on another device.
    pub fn pack_rows<E: Element>(&self, rows: Range<usize>, packed: &mut [E], pool: &Pool) -> Result<()> {
        let block = Shape::new::<E>(DEPTH_BLOCK, self.columns);
        packed.par_chunks_mut(block.numbers()).take(rows.len().div_ceil(DEPTH_BLOCK)).enumerate().try_for_each(
            |(i, out)| {
                let first = rows.start + i * DEPTH_BLOCK;
                let depth = (rows.end - first).min(DEPTH_BLOCK);
                let shape = Shape::new::<E>(depth, self.columns);
                let mut part = pool.take::<f32>(ROWS_PART, self.columns, ROWS_PART);
                for row in (0..depth).step_by(ROWS_PART) {
                    let count = (depth - row).min(ROWS_PART);
                    let part = &mut part[..count * self.columns];
                    self.dequantize_rows(first + row..first + row + count, part)?;
                    for tile in 0..shape.tiles() {
                        let (columns, vectors) = shape.tile(tile);
                        let width = vectors * LANES;
                        let out = &mut out[shape.offset(tile) + row * width..];
                        pack_rows(&part[tile * TILE_COLUMNS..], self.columns, count, columns, width, out);
                    }
                }
                Ok(())
            },
        )
    }
}

/// What [`FrozenWeight::pack_transposed`] of so many rows takes.
pub(super) fn lend_pack_transposed(rows: usize, ledger: &Ledger) {
    let columns = rows.min(TILE_COLUMNS);
    ledger.at_once(rows.div_ceil(TILE_COLUMNS), || ledger.take::<f32>(columns, DEPTH_PART, TILE_COLUMNS));
}

/// What [`FrozenWeight::pack_rows`] of so many rows, of `columns` each, takes.
pub(super) fn lend_pack_rows((rows, columns): (usize, usize), ledger: &Ledger) {
    ledger.at_once(rows.div_ceil(DEPTH_BLOCK), || ledger.take::<f32>(ROWS_PART, columns, ROWS_PART));
}
