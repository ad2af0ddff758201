#include "sample/cpu/sample_binding.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <stdexcept>

#include "native/cpu/kernel_table.h"
#include "native/cpu/thread_pool.h"
#include "sample/cpu/philox.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quire {
namespace {

template <typename T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// N rows of V logits, and how each is drawn.
struct Draw {
  const float* logits;
  int64_t num_rows;
  int64_t vocab_size;
  const double *temperature, *top_p, *min_p;
  const int64_t *top_k, *seed, *sample_index, *position;
  int64_t* token_ids;
};

// A row is drawn by one thread, so its token does not depend on their number.
class DrawWork : public PhasedWork {
 public:
  DrawWork(const Draw& draw, const SampleKernels& kernels) : draw_(draw), kernels_(kernels) {}
  int num_phases() const override { return 1; }
  int64_t num_chunks(int) const override { return draw_.num_rows; }

  void run_chunk(int, int64_t row, Scratch& scratch) const override {
    scratch.owner = nullptr;
    scratch.memory.reserve(kernels_.draw_workspace_bytes(draw_.vocab_size));
    const DrawLimits limits{draw_.temperature[row], draw_.top_k[row], draw_.top_p[row], draw_.min_p[row]};
    const double number = philox_uniform(draw_.seed[row], draw_.sample_index[row], draw_.position[row]);
    draw_.token_ids[row] = kernels_.draw_row(draw_.logits + row * draw_.vocab_size, draw_.vocab_size, limits, number,
                                             scratch.memory.as<void>());
  }

 private:
  const Draw& draw_;
  const SampleKernels& kernels_;
};

// Masks M rows of `logits`.
class MaskWork : public PhasedWork {
 public:
  MaskWork(const Matrix<float>& logits, const Vector<const int64_t>& rows, const Matrix<const uint32_t>& words,
           const SampleKernels& kernels)
      : logits_(logits), rows_(rows), words_(words), kernels_(kernels) {}
  int num_phases() const override { return 1; }
  int64_t num_chunks(int) const override { return static_cast<int64_t>(rows_.shape(0)); }

  void run_chunk(int, int64_t index, Scratch&) const override {
    const int64_t vocab_size = static_cast<int64_t>(logits_.shape(1));
    kernels_.mask_row(logits_.data() + rows_.data()[index] * vocab_size, vocab_size,
                      words_.data() + index * static_cast<int64_t>(words_.shape(1)));
  }

 private:
  const Matrix<float>& logits_;
  const Vector<const int64_t>& rows_;
  const Matrix<const uint32_t>& words_;
  const SampleKernels& kernels_;
};

class Sampler {
 public:
  Sampler(std::shared_ptr<ThreadPool> pool, const std::string& instruction_set)
      : pool_(std::move(pool)), kernels_(kernels_named(instruction_set).sample) {}

  void draw_tokens(const Matrix<const float>& logits, const Vector<const double>& temperature,
                   const Vector<const int64_t>& top_k, const Vector<const double>& top_p,
                   const Vector<const double>& min_p, const Vector<const int64_t>& seed,
                   const Vector<const int64_t>& sample_index, const Vector<const int64_t>& position,
                   const Vector<int64_t>& token_ids) const {
    const size_t num_rows = logits.shape(0);
    for (const size_t length : {temperature.shape(0), top_k.shape(0), top_p.shape(0), min_p.shape(0), seed.shape(0),
                                sample_index.shape(0), position.shape(0), token_ids.shape(0)}) {
      if (length != num_rows) throw std::invalid_argument("parameters for another number of rows");
    }
    if (logits.shape(1) == 0) throw std::invalid_argument("an empty vocabulary");
    const Draw draw{logits.data(),       static_cast<int64_t>(num_rows),
                    static_cast<int64_t>(logits.shape(1)),
                    temperature.data(),  top_p.data(),
                    min_p.data(),        top_k.data(),
                    seed.data(),         sample_index.data(),
                    position.data(),     token_ids.data()};
    run(DrawWork(draw, kernels_));
  }

  void apply_mask(const Matrix<float>& logits, const Vector<const int64_t>& rows,
                  const Matrix<const uint32_t>& words) const {
    if (words.shape(0) != rows.shape(0) || words.shape(1) != (logits.shape(1) + 31) / 32) {
      throw std::invalid_argument("a mask of another shape");
    }
    for (size_t i = 0; i < rows.shape(0); ++i) {
      if (rows(i) < 0 || rows(i) >= static_cast<int64_t>(logits.shape(0))) {
        throw std::out_of_range("a masked row outside the logits");
      }
    }
    run(MaskWork(logits, rows, words, kernels_));
  }

 private:
  void run(const PhasedWork& work) const {
    nb::gil_scoped_release released;
    pool_->run(work);
  }

  std::shared_ptr<ThreadPool> pool_;
  const SampleKernels& kernels_;
};

}  // namespace

void bind_sample(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def(nb::init<std::shared_ptr<ThreadPool>, const std::string&>(), "pool"_a, "instruction_set"_a)
      .def("draw_tokens", &Sampler::draw_tokens, "logits"_a, "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a,
           "seed"_a, "sample_index"_a, "position"_a, "token_ids"_a.noconvert())
      .def("apply_mask", &Sampler::apply_mask, "logits"_a.noconvert(), "rows"_a, "words"_a);
}

}  // namespace quire
