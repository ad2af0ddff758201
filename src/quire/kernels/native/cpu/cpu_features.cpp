#include <stdexcept>

#if defined(QUIRE_HAS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "native/cpu/kernel_table.h"

namespace quire {

#define QUIRE_DECLARE_TABLE(isa) \
  namespace isa {                \
  extern const KernelTable kTable; \
  }

QUIRE_DECLARE_TABLE(portable)
#if defined(__x86_64__)
QUIRE_DECLARE_TABLE(avx2)
#endif
#if defined(__aarch64__)
QUIRE_DECLARE_TABLE(neon_dotprod)

namespace {

// Whether the processor has dot products of bytes.
bool has_dot_products() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  int has = 0;
  size_t size = sizeof has;
  return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
  return false;
#endif
}

}  // namespace
#endif
#if defined(QUIRE_HAS_AVX512)
QUIRE_DECLARE_TABLE(avx512)
QUIRE_DECLARE_TABLE(avx512_vnni)
QUIRE_DECLARE_TABLE(avx512_bf16)
#endif
#if defined(QUIRE_HAS_AMX)
QUIRE_DECLARE_TABLE(amx)

namespace {

// Whether the processor has tile registers for bytes and bfloat16, and Linux lets this process use them.
bool may_use_amx() {
#if defined(QUIRE_EMULATE_AMX)
  return true;
#elif defined(__linux__)
  constexpr unsigned kBfloat16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kAll = kBfloat16 | kTile | kInt8;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, features = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &features) || (features & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
#endif

std::vector<const KernelTable*> available_kernels() {
  std::vector<const KernelTable*> available;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if defined(QUIRE_HAS_AVX512)
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni");
  const bool has_bfloat16 = has_vnni && __builtin_cpu_supports("avx512bf16");
#if defined(QUIRE_HAS_AMX)
  static const bool has_amx = has_bfloat16 && may_use_amx();
  if (has_amx) available.push_back(&amx::kTable);
#endif
  if (has_bfloat16) available.push_back(&avx512_bf16::kTable);
  if (has_vnni) available.push_back(&avx512_vnni::kTable);
  if (has_avx512) available.push_back(&avx512::kTable);
#endif
  if (has_avx2) available.push_back(&avx2::kTable);
#endif
#if defined(__aarch64__)
  if (has_dot_products()) available.push_back(&neon_dotprod::kTable);
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
