//! Panels on the CPU: the twin by which the order of panels is tested, and what the graph of tests runs on. Plain loops; a run
//! on the CPU has [`crate::ops::gemm`].

use super::{PanelProduct, Product, Sizes};
use crate::ops::compute::Compute;
use crate::ops::element::Element;
use crate::ops::frozen_weight::FrozenWeight;
use candle_core::Result;
use half::bf16;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Numbers are held in `f32`, rounded as `compute` has it.
pub(super) struct CpuPanels<'a> {
    weight: &'a FrozenWeight,
    compute: Compute,
    panel: Vec<f32>,
    input: Cow<'a, [f32]>,
    pub(super) output: Vec<f32>,
}

impl<'a> CpuPanels<'a> {
    /// With an output of so many numbers, none of which is one before it is written.
    pub(super) fn new(
        weight: &'a FrozenWeight,
        compute: Compute,
        input: &'a [f32],
        sizes: Sizes,
        outputs: usize,
    ) -> Self {
        let mut input = Cow::Borrowed(input);
        if compute == Compute::Bf16 {
            round(input.to_mut());
        }
        let panel = vec![f32::NAN; sizes.panel_rows * sizes.columns];
        Self { weight, compute, panel, input, output: vec![f32::NAN; outputs] }
    }
}

fn round(numbers: &mut [f32]) {
    for x in numbers {
        *x = <bf16 as Element>::from_f32(*x).to_f32();
    }
}

impl PanelProduct for CpuPanels<'_> {
    fn dequantize(&mut self, rows: Range<usize>) -> Result<()> {
        let numbers = rows.len() * self.weight.columns();
        self.weight.dequantize_rows(rows, &mut self.panel[..numbers])?;
        if self.compute == Compute::Bf16 {
            round(&mut self.panel[..numbers]);
        }
        Ok(())
    }

    fn multiply(&mut self, product: Product) -> Result<()> {
        let Product { transpose, m, n, k, panel_stride, input_offset, input_stride, output_offset, output_stride, add } =
            product;
        let (panel, input) = (&self.panel, &self.input);
        self.output.par_chunks_mut(output_stride.max(1)).take(n).enumerate().for_each(|(j, column)| {
            let column = &mut column[output_offset..][..m];
            let b = &input[j * input_stride + input_offset..][..k];
            if !add {
                column.fill(0.0);
            }
            if transpose {
                for (c, a) in column.iter_mut().zip(panel.chunks(panel_stride)) {
                    *c += crate::ops::cpu::sum_of_products(&a[..k], b);
                }
            } else {
                for (a, b) in panel.chunks(panel_stride).zip(b) {
                    column.iter_mut().zip(a).for_each(|(c, a)| *c += a * b);
                }
            }
        });
        Ok(())
    }
}
