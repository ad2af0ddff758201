#include <stdexcept>

#include "native/cpu/kernel_table.h"

namespace quire {

#define QUIRE_DECLARE_TABLE(isa) \
  namespace isa {                \
  extern const KernelTable kTable; \
  }

QUIRE_DECLARE_TABLE(portable)
#if defined(__x86_64__)
QUIRE_DECLARE_TABLE(avx2)
QUIRE_DECLARE_TABLE(avx512)
QUIRE_DECLARE_TABLE(avx512_vnni)
QUIRE_DECLARE_TABLE(avx512_bf16)
#endif

std::vector<const KernelTable*> available_kernels() {
  std::vector<const KernelTable*> available;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
  if (has_vnni && __builtin_cpu_supports("avx512bf16")) available.push_back(&avx512_bf16::kTable);
  if (has_vnni) available.push_back(&avx512_vnni::kTable);
  if (has_avx512) available.push_back(&avx512::kTable);
  if (has_avx2) available.push_back(&avx2::kTable);
#endif
  available.push_back(&portable::kTable);
  return available;
}

const KernelTable& kernels_named(const std::string& name) {
  for (const KernelTable* table : available_kernels()) {
    if (name == table->name) return *table;
  }
  throw std::invalid_argument("this machine does not have the instruction set " + name);
}

}  // namespace quire
