#include "native/cpu/memory.h"

#include <new>

namespace quire {

void Buffer::reserve(size_t num_bytes) {
  if (num_bytes <= size_) return;
  std::free(data_);
  data_ = nullptr;
  size_ = 0;
  const size_t rounded = (num_bytes + kCacheLine - 1) / kCacheLine * kCacheLine;
  data_ = std::aligned_alloc(kCacheLine, rounded);
  if (data_ == nullptr) throw std::bad_alloc();
  size_ = rounded;
}

}  // namespace quire
