#pragma once

#include <nanobind/nanobind.h>

namespace quire {

// Adds `Sampler`: see `quire.kernels.sample.native_cpu`.
void bind_sample(nanobind::module_& m);

}  // namespace quire
