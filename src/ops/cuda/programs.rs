//! The files of kernels.

use crate::device::driver::Program;
use candle_core::quantized::GgmlDType;

const PRELUDE: &str = include_str!("kernels/prelude.cuh");

/// Numbers of GGML blocks.
pub(super) fn dequantize() -> Program {
    Program { name: "dequantize", source: &[PRELUDE, include_str!("kernels/dequantize.cu")], defines: Vec::new() }
}

/// Operations on rows that every model needs.
pub(super) fn rows() -> Program {
    let source = &[
        PRELUDE,
        include_str!("kernels/rows_common.cuh"),
        include_str!("kernels/norms.cuh"),
        include_str!("kernels/gates.cuh"),
        include_str!("kernels/loss.cuh"),
        include_str!("kernels/rows.cu"),
    ];
    Program { name: "rows", source, defines: Vec::new() }
}

/// Operations on rows of which some models have need.
pub(super) fn families() -> Program {
    let source = &[
        PRELUDE,
        include_str!("kernels/rows_common.cuh"),
        include_str!("kernels/norms.cuh"),
        include_str!("kernels/gates.cuh"),
        include_str!("kernels/loss.cuh"),
        include_str!("kernels/families.cu"),
    ];
    Program { name: "families", source, defines: Vec::new() }
}

/// The optimizer.
pub(super) fn adamw() -> Program {
    Program { name: "adamw", source: &[PRELUDE, include_str!("kernels/adamw.cu")], defines: Vec::new() }
}

/// Attention, for heads of one width.
pub(super) fn attention(head_dim: usize) -> Program {
    let source = &[
        PRELUDE,
        include_str!("kernels/attention_common.cuh"),
        include_str!("kernels/attention_f32.cuh"),
        include_str!("kernels/attention_bf16.cuh"),
        include_str!("kernels/attention.cu"),
    ];
    Program { name: "attention", source, defines: vec![("HEAD_DIM", head_dim)] }
}

/// All programs, attention for this width of heads.
pub fn programs(head_dim: usize) -> [Program; 5] {
    [dequantize(), rows(), families(), adamw(), attention(head_dim)]
}

/// The programs that do not depend on a model, and a kernel of each.
pub(super) fn always() -> [(Program, &'static str); 3] {
    [(dequantize(), "dequantize_f32_f32"), (rows(), "rms_norm_f32"), (adamw(), "adamw")]
}

/// The types that weights are held in, and how kernels call them.
pub const TYPES: [(GgmlDType, &str); 13] = [
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

/// How kernels call a type; `None` for those that no weight is held in.
pub(super) fn type_name(dtype: GgmlDType) -> Option<&'static str> {
    TYPES.iter().find(|(each, _)| *each == dtype).map(|(_, name)| *name)
}
