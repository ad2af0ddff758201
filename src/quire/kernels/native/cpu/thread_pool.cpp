#include "native/cpu/thread_pool.h"

#include <exception>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace quire {
namespace {

constexpr int kSpinsBeforeYield = 4000;
constexpr int kSpinsBeforeSleep = 2000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 0; i < std::max(1, num_threads); ++i) scratches_.push_back(std::make_unique<Scratch>());
  for (int i = 1; i < this->num_threads(); ++i) threads_.emplace_back([this, i] { serve(i); });
}

ThreadPool::~ThreadPool() {
  is_closing_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const PhasedWork& work) {
  const int num_phases = work.num_phases();
  make_room(num_phases);
  const uint32_t epoch = epoch_.load() + 1;
  for (int i = 0; i < num_phases; ++i) {
    Progress& progress = progress_[static_cast<size_t>(i)];
    progress.claimed.store(static_cast<uint64_t>(epoch) << 32, std::memory_order_relaxed);
    progress.done.store(0, std::memory_order_relaxed);
    // Whoever sees this count sees the epoch as well.
    progress.count.store(work.num_chunks(i), std::memory_order_release);
  }
  has_failed_ = false;
  work_ = &work;
  num_phases_ = num_phases;
  epoch_.store(epoch);
  if (!threads_.empty()) epoch_.notify_all();
  work_on(epoch, *scratches_[0]);
  if (has_failed_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void ThreadPool::make_room(int num_phases) {
  if (progress_.size() >= static_cast<size_t>(num_phases)) return;
  is_growing_ = true;
  while (num_inside_.load() != 0) std::this_thread::yield();
  progress_ = std::vector<Progress>(static_cast<size_t>(num_phases) * 2);
  is_growing_ = false;
}

void ThreadPool::enter() {
  while (true) {
    num_inside_.fetch_add(1);
    if (!is_growing_.load()) return;
    num_inside_.fetch_sub(1);
    while (is_growing_.load()) std::this_thread::yield();
  }
}

void ThreadPool::serve(int thread) {
  uint32_t seen = 0;
  while (true) {
    for (int spins = 0; spins < kSpinsBeforeSleep && epoch_.load(std::memory_order_acquire) == seen; ++spins) pause();
    epoch_.wait(seen);
    enter();
    seen = epoch_.load();
    // Asked after the epoch is read: the epoch of the end is the last one, nobody would wake who waits behind it.
    if (is_closing_) return;
    work_on(seen, *scratches_[static_cast<size_t>(thread)]);
    num_inside_.fetch_sub(1);
  }
}

void ThreadPool::work_on(uint32_t epoch, Scratch& scratch) {
  const int num_phases = num_phases_.load();
  for (int phase = 0; phase < num_phases; ++phase) {
    Progress& progress = progress_[static_cast<size_t>(phase)];
    int64_t chunk;
    while (claim(progress, epoch, &chunk)) {
      run_chunk(phase, chunk, scratch);
      progress.done.fetch_add(1, std::memory_order_acq_rel);
    }
    if (!wait_until_done(progress, epoch)) return;
  }
}

void ThreadPool::run_chunk(int phase, int64_t chunk, Scratch& scratch) {
  if (has_failed_.load(std::memory_order_relaxed)) return;
  try {
    work_.load()->run_chunk(phase, chunk, scratch);
  } catch (...) {
    if (!has_failed_.exchange(true)) failure_ = std::current_exception();
  }
}

bool ThreadPool::claim(Progress& progress, uint32_t epoch, int64_t* chunk) {
  uint64_t claimed = progress.claimed.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(claimed >> 32) == epoch) {
    const int64_t next = static_cast<int64_t>(claimed & 0xffffffffu);
    if (next >= progress.count.load(std::memory_order_acquire)) return false;
    if (progress.claimed.compare_exchange_weak(claimed, claimed + 1, std::memory_order_acq_rel)) {
      *chunk = next;
      return true;
    }
  }
  return false;
}

bool ThreadPool::wait_until_done(const Progress& progress, uint32_t epoch) const {
  for (int spins = 0; progress.done.load(std::memory_order_acquire) < progress.count.load(std::memory_order_relaxed);
       ++spins) {
    if (epoch_.load(std::memory_order_relaxed) != epoch) return false;
    if (spins < kSpinsBeforeYield) {
      pause();
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

}  // namespace quire
