// The kernels of one instruction set. The best that the machine has is chosen when a program is made.
#pragma once

#include <string>
#include <vector>

#include "linear/cpu/linear_table.h"
#include "paged_attention/cpu/attention_table.h"
#include "rms_norm/cpu/rms_norm_table.h"
#include "rope_kv_write/cpu/rope_kv_write_table.h"
#include "sample/cpu/sample_table.h"
#include "silu_mul/cpu/silu_mul_table.h"

namespace quire {

struct KernelTable {
  const char* name;
  LinearKernels linear;
  RmsNormKernels rms_norm;
  RopeKvWriteKernels rope_kv_write;
  AttentionKernels attention;
  SiluMulKernels silu_mul;
  SampleKernels sample;
};

// Those that this machine can run, the best first; "portable" is the last.
std::vector<const KernelTable*> available_kernels();

// Throws std::invalid_argument if this machine cannot run them.
const KernelTable& kernels_named(const std::string& name);

}  // namespace quire
