// Threads that run the phases of a step together.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#include "native/cpu/step.h"

namespace quire {

// Work in phases: all chunks of one are done before the next begins.
class PhasedWork {
 public:
  virtual ~PhasedWork() = default;
  virtual int num_phases() const = 0;
  virtual int64_t num_chunks(int phase) const = 0;
  virtual void run_chunk(int phase, int64_t chunk, Scratch& scratch) const = 0;
};

// A fixed number of threads, the caller among them.
//
// A phase is over when its chunks are, whoever ran them: a thread that the system has taken off its core holds up
// nobody unless it is inside a chunk. So a busy neighbour (the HTTP process) costs its share of the machine, not the
// step. Threads spin for some microseconds where they wait and sleep after that.
class ThreadPool {
 public:
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(scratches_.size()); }

  // Runs the work on all threads and returns when it is done. From one thread at a time. An exception of a chunk ends
  // the work and is thrown again here.
  void run(const PhasedWork& work);

 private:
  // How far a phase is. `claimed` carries the epoch in its upper half, so that a thread that slept through the end of
  // a run cannot claim a chunk of the next one. All that such a thread touches is in here and lives as long as it;
  // the work itself is only looked at by who holds a chunk of it, and cannot end before.
  struct alignas(kCacheLine) Progress {
    std::atomic<uint64_t> claimed{0};
    std::atomic<int64_t> done{0};
    std::atomic<int64_t> count{0};
  };

  void make_room(int num_phases);
  // Counts a thread in, once nobody replaces `progress_`: one that wakes late may come at any time.
  void enter();
  void serve(int thread);
  void work_on(uint32_t epoch, Scratch& scratch);
  void run_chunk(int phase, int64_t chunk, Scratch& scratch);
  static bool claim(Progress& progress, uint32_t epoch, int64_t* chunk);
  bool wait_until_done(const Progress& progress, uint32_t epoch) const;

  std::vector<std::unique_ptr<Scratch>> scratches_;
  std::vector<std::thread> threads_;
  std::vector<Progress> progress_;
  std::atomic<int> num_phases_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<const PhasedWork*> work_{nullptr};
  std::atomic<int> num_inside_{0};
  std::atomic<bool> is_growing_{false};
  std::atomic<bool> is_closing_{false};
  std::atomic<bool> has_failed_{false};
  std::exception_ptr failure_;
};

}  // namespace quire
