// All kernels for the instruction set that QUIRE_ISA names, and their table.
#pragma once

#include "linear/cpu/linear_kernels.h"
#include "paged_attention/cpu/attention_kernels.h"
#include "rms_norm/cpu/rms_norm_kernels.h"
#include "rope_kv_write/cpu/rope_kv_write_kernels.h"
#include "sample/cpu/sample_kernels.h"
#include "silu_mul/cpu/silu_mul_kernels.h"
#include "native/cpu/kernel_table.h"

namespace quire::QUIRE_ISA {

#define QUIRE_NAME_OF(isa) #isa
#define QUIRE_NAME(isa) QUIRE_NAME_OF(isa)

extern const KernelTable kTable;
const KernelTable kTable = {
    .name = QUIRE_NAME(QUIRE_ISA),
    .linear = {tile_rows, row_format, row_bytes, prepare_rows, multiply_groups, multiply_gated_groups},
    .rms_norm = {norm_row},
    .rope_kv_write = {write_token},
    .attention = {attend_tile, attend_segment, merge_segments},
    .silu_mul = {silu_mul_row},
    .sample = {draw_row, draw_workspace_bytes, mask_row},
};

}  // namespace quire::QUIRE_ISA
