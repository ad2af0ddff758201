#include "native/cpu/memory.h"

#include <new>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace quire {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLarge = 2 * kHugePage;

// Asks for huge pages where whole ones lie in the memory: fewer addresses to look up. Any answer will do.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t num_bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(data, num_bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
}

}  // namespace

void Buffer::reserve(size_t num_bytes) {
  if (num_bytes <= size_) return;
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
  const size_t unit = num_bytes < kLarge ? kCacheLine : kHugePage;
  const size_t rounded = (num_bytes + unit - 1) / unit * unit;
  data_ = std::aligned_alloc(unit, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  if (num_bytes >= kLarge) ask_for_huge_pages(data_, num_bytes);
  size_ = rounded;
}

}  // namespace quire
