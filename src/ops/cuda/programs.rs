//! The files of kernels.

use crate::device::driver::Program;
use crate::weight_type::WeightType;

const PRELUDE: &str = include_str!("kernels/prelude.cuh");

/// Numbers of blocks.
pub(super) fn dequantize() -> Program {
    Program { name: "dequantize", source: &[PRELUDE, include_str!("kernels/dequantize.cu")], defines: Vec::new() }
}

/// A file of kernels on rows, behind what those share.
macro_rules! on_rows {
    ($name:literal) => {
        Program {
            name: $name,
            source: &[
                PRELUDE,
                include_str!("kernels/rows_common.cuh"),
                include_str!("kernels/norms.cuh"),
                include_str!("kernels/gates.cuh"),
                include_str!("kernels/loss.cuh"),
                include_str!(concat!("kernels/", $name, ".cu")),
            ],
            defines: Vec::new(),
        }
    };
}

/// Operations on rows that every model needs.
pub(super) fn rows() -> Program {
    on_rows!("rows")
}

/// Operations on rows of which some models have need.
pub(super) fn families() -> Program {
    on_rows!("families")
}

/// What some objectives must know of a token.
pub(super) fn objectives() -> Program {
    on_rows!("objectives")
}

/// The optimizer.
pub(super) fn adamw() -> Program {
    Program { name: "adamw", source: &[PRELUDE, include_str!("kernels/adamw.cu")], defines: Vec::new() }
}

/// Attention, for heads of one width. `plain`: without caps and windows; a compiler that knows of none makes faster code.
pub(super) fn attention(head_dim: usize, plain: bool) -> Program {
    let source = &[
        PRELUDE,
        include_str!("kernels/attention_common.cuh"),
        include_str!("kernels/attention_f32.cuh"),
        include_str!("kernels/attention_bf16.cuh"),
        include_str!("kernels/attention.cu"),
    ];
    Program { name: "attention", source, defines: vec![("HEAD_DIM", head_dim), ("PLAIN", usize::from(plain))] }
}

/// All programs, attention for this width of heads.
pub fn programs(head_dim: usize) -> [Program; 7] {
    let [plain, limited] = [true, false].map(|plain| attention(head_dim, plain));
    [dequantize(), rows(), families(), objectives(), adamw(), plain, limited]
}

/// The programs that do not depend on a model, and a kernel of each.
pub(super) fn always() -> [(Program, &'static str); 3] {
    [(dequantize(), "dequantize_f32_f32"), (rows(), "rms_norm_f32"), (adamw(), "adamw")]
}

/// The types that weights are held in, and how kernels call them.
pub const TYPES: [(WeightType, &str); 16] = [
    (WeightType::F32, "f32"),
    (WeightType::F16, "f16"),
    (WeightType::BF16, "bf16"),
    (WeightType::Q4_0, "q4_0"),
    (WeightType::Q4_1, "q4_1"),
    (WeightType::Q5_0, "q5_0"),
    (WeightType::Q5_1, "q5_1"),
    (WeightType::Q8_0, "q8_0"),
    (WeightType::Q2K, "q2k"),
    (WeightType::Q3K, "q3k"),
    (WeightType::Q4K, "q4k"),
    (WeightType::Q5K, "q5k"),
    (WeightType::Q6K, "q6k"),
    (WeightType::Iq4Nl, "iq4_nl"),
    (WeightType::Iq4Xs, "iq4_xs"),
    (WeightType::Nf4, "nf4"),
];

/// How kernels call a type; `None` for those that no weight is held in.
pub(super) fn type_name(dtype: WeightType) -> Option<&'static str> {
    TYPES.iter().find(|(each, _)| *each == dtype).map(|(_, name)| *name)
}
