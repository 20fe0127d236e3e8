//! Panels on a GPU: a kernel that dequantizes, and cuBLAS, which multiplies in `bf16` or `f32` with `f32` sums and outputs.

use super::kernels::{Module, type_name};
use crate::ops::compute::Compute;
use crate::ops::frozen_matmul::{PanelProduct, Product, Sizes};
use crate::ops::frozen_weight::FrozenWeight;
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, LaunchConfig, PushKernelArg, SyncOnDrop,
};
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, bail};
use half::bf16;
use std::ops::Range;
use std::sync::Arc;

/// Threads of a block, each of which writes eight numbers.
const THREADS: usize = 256;
const NUMBERS_OF_BLOCK: usize = 8 * THREADS;

/// A contiguous tensor of `f32`.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Input<'a> {
    pub storage: &'a CudaStorage,
    pub layout: &'a Layout,
}

/// Dense numbers in the type of the product.
enum Numbers {
    F32(CudaSlice<f32>),
    Bf16(CudaSlice<bf16>),
}

/// The input in the type of the product: as it is, or rounded.
enum Factor<'a> {
    F32(Input<'a>),
    Bf16(CudaStorage),
}

/// One product's memory and what computes it.
pub(in crate::ops) struct CudaPanels<'a> {
    weight: &'a FrozenWeight,
    device: CudaDevice,
    stream: Arc<CudaStream>,
    kernel: CudaFunction,
    panel: Numbers,
    input: Factor<'a>,
    output: CudaSlice<f32>,
}

impl<'a> CudaPanels<'a> {
    /// With an output of so many numbers.
    pub(in crate::ops) fn new(
        weight: &'a FrozenWeight,
        compute: Compute,
        input: Input<'a>,
        sizes: Sizes,
        outputs: usize,
    ) -> Result<Self> {
        let device = input.storage.device().clone();
        let Some(name) = type_name(weight.dtype()) else { bail!("no CUDA kernel for {:?}", weight.dtype()) };
        if input.storage.dtype() != DType::F32 {
            bail!("expected an input in f32, got {:?}", input.storage.dtype());
        }
        let kernel = Module::Dequantize.function(&device, &format!("dequantize_{name}_{}", compute.name()))?;
        let numbers = sizes.panel_rows * sizes.columns;
        // SAFETY: a panel is dequantized before it is multiplied, and the products write all outputs; both on one stream.
        #[expect(unsafe_code, reason = "writing zeros first would be a pass over memory for nothing")]
        let (panel, output) = unsafe {
            let panel = match compute {
                Compute::F32 => Numbers::F32(device.alloc(numbers)?),
                Compute::Bf16 => Numbers::Bf16(device.alloc(numbers)?),
            };
            (panel, device.alloc(outputs)?)
        };
        let input = match compute {
            Compute::F32 => Factor::F32(input),
            Compute::Bf16 => Factor::Bf16(input.storage.to_dtype(input.layout, DType::BF16)?),
        };
        Ok(Self { weight, stream: device.cuda_stream(), device, kernel, panel, input, output })
    }

    pub(in crate::ops) fn into_output(self) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(self.output, self.device)
    }
}

impl Factor<'_> {
    /// The address of a number, its type, and what keeps the address valid.
    fn at<'s>(&'s self, offset: usize, stream: &'s CudaStream) -> Result<(u64, cudaDataType_t, SyncOnDrop<'s>)> {
        Ok(match self {
            Self::F32(input) => {
                let (address, guard) = input.storage.as_cuda_slice::<f32>()?.device_ptr(stream);
                let offset = input.layout.start_offset() + offset;
                (address + 4 * offset as u64, cudaDataType_t::CUDA_R_32F, guard)
            }
            Self::Bf16(input) => {
                let (address, guard) = input.as_cuda_slice::<bf16>()?.device_ptr(stream);
                (address + 2 * offset as u64, cudaDataType_t::CUDA_R_16BF, guard)
            }
        })
    }
}

impl PanelProduct for CudaPanels<'_> {
    fn dequantize(&mut self, rows: Range<usize>) -> Result<()> {
        let row_bytes = self.weight.bytes() / self.weight.rows();
        let numbers = rows.len() * self.weight.columns();
        let room = match &self.panel {
            Numbers::F32(panel) => panel.len(),
            Numbers::Bf16(panel) => panel.len(),
        };
        if rows.end > self.weight.rows() || numbers > room {
            bail!("rows {rows:?} of a weight of {} do not fit a panel of {room} numbers", self.weight.rows());
        }
        let (address, _guard) = self.weight.quantized().device_ptr_with_guard(&self.stream)?;
        let bytes = address as u64 + (rows.start * row_bytes) as u64;
        let count = numbers as u64;
        let blocks = u32::try_from(numbers.div_ceil(NUMBERS_OF_BLOCK)).map_err(Error::wrap)?;
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (THREADS as u32, 1, 1), shared_mem_bytes: 0 };
        let mut launch = self.stream.launch_builder(&self.kernel);
        launch.arg(&bytes);
        match &mut self.panel {
            Numbers::F32(panel) => launch.arg(panel),
            Numbers::Bf16(panel) => launch.arg(panel),
        };
        launch.arg(&count);
        // SAFETY: the arguments are those of the kernels in dequantize.cu; the rows are within the weight and the panel.
        #[expect(unsafe_code, reason = "a kernel's arguments cannot be checked")]
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    fn multiply(&mut self, product: Product) -> Result<()> {
        let int = |size: usize| i32::try_from(size).map_err(Error::wrap);
        let (alpha, beta) = (1f32, if product.add { 1f32 } else { 0f32 });
        let panel = match &self.panel {
            Numbers::F32(panel) => panel.device_ptr(&self.stream),
            Numbers::Bf16(panel) => panel.device_ptr(&self.stream),
        };
        let (input, dtype, _input_guard) = self.input.at(product.input_offset, &self.stream)?;
        let (output, _output_guard) = self.output.device_ptr_mut(&self.stream);
        let transpose = if product.transpose { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N };
        let blas = self.device.cublas_handle();
        // SAFETY: the matrices are on the stream's device and within their memory: a test holds every product to that.
        #[expect(unsafe_code, reason = "cuBLAS takes addresses")]
        unsafe {
            gemm_ex(
                *blas.handle(),
                transpose,
                cublasOperation_t::CUBLAS_OP_N,
                int(product.m)?,
                int(product.n)?,
                int(product.k)?,
                (&raw const alpha).cast(),
                panel.0 as *const _,
                dtype,
                int(product.panel_stride)?,
                input as *const _,
                dtype,
                int(product.input_stride)?,
                (&raw const beta).cast(),
                (output + 4 * product.output_offset as u64) as *mut _,
                cudaDataType_t::CUDA_R_32F,
                int(product.output_stride)?,
                cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .w()?;
        Ok(())
    }
}
