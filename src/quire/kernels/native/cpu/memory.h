// Memory that starts on a cache line and is never initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace quire {

constexpr size_t kCacheLine = 64;

// Owns so many bytes; grows without keeping its content. What is not a line long is defined in memory.cpp: a copy that
// is compiled for one instruction set must not serve the others.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t num_bytes) { reserve(num_bytes); }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  // Makes room for so many bytes. The content is lost where it has to grow.
  void reserve(size_t num_bytes);

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  size_t size() const { return size_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace quire
