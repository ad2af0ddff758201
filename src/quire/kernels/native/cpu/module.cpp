// The extension module: weights, threads and recorded programs for Python. `quire.kernels.native` says what they do.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <functional>
#include <stdexcept>

#include "embedding/cpu/embedding_instruction.h"
#include "linear/cpu/linear_instruction.h"
#include "native/cpu/kernel_table.h"
#include "native/cpu/program.h"
#include "native/cpu/select_rows_instruction.h"
#include "native/cpu/thread_pool.h"
#include "paged_attention/cpu/attention_instruction.h"
#include "rms_norm/cpu/rms_norm_instruction.h"
#include "rope/cpu/rope_tables_instruction.h"
#include "rope_kv_write/cpu/rope_kv_write_instruction.h"
#include "sample/cpu/sample_binding.h"
#include "silu_mul/cpu/silu_mul_instruction.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace quire {
namespace {

template <typename T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <typename T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Splits work over the rows of a weight; groups of 16 rows are the unit.
class GroupWork : public PhasedWork {
 public:
  GroupWork(int64_t num_rows, std::function<void(int64_t, int64_t)> write)
      : num_rows_(num_rows), write_(std::move(write)) {}
  int num_phases() const override { return 1; }
  int64_t num_chunks(int) const override { return divide_up(num_rows_, kGroupRows); }
  void run_chunk(int, int64_t chunk, Scratch&) const override {
    const Span rows = span_of(chunk, kGroupRows, num_rows_);
    write_(rows.begin, rows.end - rows.begin);
  }

 private:
  int64_t num_rows_;
  std::function<void(int64_t, int64_t)> write_;
};

// A weight that is being filled in, segment by segment.
class Weight {
 public:
  Weight(int64_t num_rows, int64_t num_columns) : packed_(std::make_shared<PackedWeight>()) {
    packed_->num_rows = num_rows;
    packed_->num_columns = num_columns;
  }

  void add_segment(const std::string& format, int64_t num_rows) {
    int64_t start = 0;
    for (const auto& segment : packed_->segments) start += segment->num_rows;
    if (num_rows < 1 || start + num_rows > packed_->num_rows) throw std::invalid_argument("more rows than the weight");
    const WeightFormat named = format_named(format);
    const int64_t unit = traits(named).row_block_columns;
    if (unit > kBlockColumns && packed_->num_columns % unit != 0) throw std::invalid_argument("columns of a K format");
    packed_->segments.push_back(std::make_unique<Segment>(named, start, num_rows, packed_->num_columns));
  }

  void write_floats(ThreadPool& pool, int64_t segment, int64_t first, Matrix<const float> rows) {
    Segment& target = checked(segment, first, static_cast<int64_t>(rows.shape(0)));
    if (static_cast<int64_t>(rows.shape(1)) != packed_->num_columns) throw std::invalid_argument("another row length");
    const float* data = rows.data();
    write(pool, static_cast<int64_t>(rows.shape(0)), [&](int64_t begin, int64_t count) {
      target.write_floats(data + begin * packed_->num_columns, first + begin, count);
    });
  }

  void write_rows(ThreadPool& pool, int64_t segment, int64_t first, Matrix<const uint8_t> rows) {
    Segment& target = checked(segment, first, static_cast<int64_t>(rows.shape(0)));
    const FormatTraits& form = traits(target.format);
    if (form.row_block_columns == 0) throw std::invalid_argument(std::string(form.name) + " is not a format of GGUF");
    const int64_t row_bytes = packed_->num_columns / form.row_block_columns * form.row_block_bytes;
    if (static_cast<int64_t>(rows.shape(1)) != row_bytes) throw std::invalid_argument("another number of bytes a row");
    const uint8_t* data = rows.data();
    write(pool, static_cast<int64_t>(rows.shape(0)), [&](int64_t begin, int64_t count) {
      target.write_rows(data + begin * row_bytes, first + begin, count);
    });
  }

  void read_rows(int64_t first, Matrix<float> out) const {
    if (first < 0 || first + static_cast<int64_t>(out.shape(0)) > packed_->num_rows ||
        static_cast<int64_t>(out.shape(1)) != packed_->num_columns) {
      throw std::out_of_range("rows outside the weight");
    }
    for (size_t i = 0; i < out.shape(0); ++i) {
      packed_->read_row(first + static_cast<int64_t>(i), out.data() + i * out.shape(1));
    }
  }

  std::vector<std::pair<std::string, int64_t>> formats() const {
    std::vector<std::pair<std::string, int64_t>> found;
    for (const auto& segment : packed_->segments) found.emplace_back(traits(segment->format).name, segment->num_rows);
    return found;
  }

  int64_t num_bytes() const {
    int64_t bytes = 0;
    for (const auto& segment : packed_->segments) bytes += segment->num_bytes();
    return bytes;
  }

  int64_t num_rows() const { return packed_->num_rows; }
  int64_t num_columns() const { return packed_->num_columns; }
  bool can_gate() const { return LinearInstruction::can_gate(*packed_); }

  // To be multiplied: every row must belong to a segment.
  std::shared_ptr<const PackedWeight> complete() const {
    int64_t rows = 0;
    for (const auto& segment : packed_->segments) rows += segment->num_rows;
    if (rows != packed_->num_rows) throw std::invalid_argument("the weight's segments do not cover its rows");
    return packed_;
  }

 private:
  Segment& checked(int64_t segment, int64_t first, int64_t count) {
    Segment& target = *packed_->segments.at(static_cast<size_t>(segment));
    const int64_t end = first + count;
    if (first < 0 || first % kGroupRows != 0 || end > target.num_rows ||
        (end % kGroupRows != 0 && end != target.num_rows)) {
      throw std::invalid_argument("rows are written in whole groups of 16");
    }
    return target;
  }

  static void write(ThreadPool& pool, int64_t num_rows, std::function<void(int64_t, int64_t)> write) {
    const GroupWork work(num_rows, std::move(write));
    nb::gil_scoped_release released;
    pool.run(work);
  }

  std::shared_ptr<PackedWeight> packed_;
};

// A recorded step with what it refers to. The tensors that its instructions point into are kept by Python.
class StepProgram {
 public:
  StepProgram(std::shared_ptr<ThreadPool> pool, const KernelTable& kernels) : program_(std::move(pool), kernels) {}

  ValueId input(int64_t width) {
    const ValueId value = program_.add_value(width);
    given_.push_back(value);
    return value;
  }

  ValueId embedding(const Weight& weight) {
    const ValueId out = program_.add_value(weight.num_columns());
    program_.add(std::make_unique<EmbeddingInstruction>(weight.complete(), out));
    return out;
  }

  ValueId rope_tables(Vector<const float> inverse_frequencies, float factor) {
    std::vector<float> frequencies(inverse_frequencies.data(), inverse_frequencies.data() + inverse_frequencies.shape(0));
    const ValueId out = program_.add_value(static_cast<int64_t>(2 * frequencies.size()));
    program_.add(std::make_unique<RopeTablesInstruction>(std::move(frequencies), factor, out));
    return out;
  }

  ValueId linear(ValueId x, bool is_of_tokens, const Weight& weight, std::optional<Vector<const float>> bias,
                 std::optional<Vector<const float>> norm, float epsilon, bool is_gated, std::optional<ValueId> add_to) {
    check_width(x, weight.num_columns());
    LinearOptions options;
    options.epsilon = epsilon;
    options.bias = pointer_of(bias, weight.num_rows());
    options.norm_weight = pointer_of(norm, weight.num_columns());
    options.epilogue = is_gated ? Epilogue::kGate : add_to ? Epilogue::kAdd : Epilogue::kStore;
    if (is_gated && !weight.can_gate()) throw std::invalid_argument("the weight's halves cannot be multiplied together");
    const ValueId out = add_to ? *add_to : program_.add_value(is_gated ? weight.num_rows() / 2 : weight.num_rows());
    if (add_to) check_width(*add_to, weight.num_rows());
    program_.add(std::make_unique<LinearInstruction>(weight.complete(), options, axis(is_of_tokens), x, out,
                                                     program_.kernels().linear));
    return out;
  }

  ValueId silu_mul(ValueId x, bool is_of_tokens) {
    const int64_t width = program_.width(x) / 2;
    const ValueId out = program_.add_value(width);
    program_.add(std::make_unique<SiluMulInstruction>(width, axis(is_of_tokens), x, out));
    return out;
  }

  ValueId rms_norm(ValueId x, bool is_of_tokens, Vector<const float> weight, float epsilon) {
    check_width(x, static_cast<int64_t>(weight.shape(0)));
    const ValueId out = program_.add_value(program_.width(x));
    program_.add(std::make_unique<RmsNormInstruction>(weight.data(), epsilon, program_.width(x), axis(is_of_tokens), x,
                                                      out));
    return out;
  }

  ValueId rope_kv_write(ValueId qkv, ValueId tables, int64_t layer, int64_t num_heads, int64_t num_kv_heads,
                        int64_t head_dim, std::optional<Vector<const float>> query_norm,
                        std::optional<Vector<const float>> key_norm, float epsilon) {
    check_width(qkv, (num_heads + 2 * num_kv_heads) * head_dim);
    RopeTask task{num_heads, num_kv_heads, head_dim, program_.width(tables)};
    task.query_norm = pointer_of(query_norm, head_dim);
    task.key_norm = pointer_of(key_norm, head_dim);
    task.epsilon = epsilon;
    const ValueId query = program_.add_value(num_heads * head_dim);
    program_.add(std::make_unique<RopeKvWriteInstruction>(task, layer, qkv, tables, query));
    num_layers_ = std::max(num_layers_, layer + 1);
    return query;
  }

  ValueId attend(ValueId query, int64_t layer, int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float scale,
                 int64_t sliding_window, float soft_cap) {
    check_width(query, num_heads * head_dim);
    if (head_dim < 4 || head_dim > 256 || head_dim % 4 != 0) throw std::invalid_argument("an unsupported head size");
    if (num_kv_heads < 1 || num_heads % num_kv_heads != 0) throw std::invalid_argument("groups of unequal size");
    const AttentionTask task{num_heads, num_kv_heads, head_dim, scale, sliding_window, soft_cap};
    const ValueId out = program_.add_value(num_heads * head_dim);
    program_.add(std::make_unique<AttentionInstruction>(task, layer, query, out));
    num_layers_ = std::max(num_layers_, layer + 1);
    return out;
  }

  ValueId select_rows(ValueId x) {
    const ValueId out = program_.add_value(program_.width(x));
    program_.add(std::make_unique<SelectRowsInstruction>(program_.width(x), x, out));
    return out;
  }

  void finish(ValueId result, bool is_of_tokens) {
    result_ = result;
    is_result_of_tokens_ = is_of_tokens;
    program_.finish({result}, given_);
  }

  // Keys and values of one more layer, [num_blocks, block_size, num_kv_heads, head_dim] as memory, with the scales of
  // an int8 cache.
  void add_cache(uintptr_t keys, uintptr_t values, uintptr_t key_scales, uintptr_t value_scales) {
    caches_.push_back({{reinterpret_cast<void*>(keys), reinterpret_cast<float*>(key_scales)},
                       {reinterpret_cast<void*>(values), reinterpret_cast<float*>(value_scales)}});
  }

  void set_cache_shape(const std::string& format, int64_t num_blocks, int64_t block_size) {
    cache_format_ = format == "float32"    ? CacheFormat::kFloat32
                    : format == "bfloat16" ? CacheFormat::kBfloat16
                    : format == "float16"  ? CacheFormat::kFloat16
                    : format == "int8"     ? CacheFormat::kInt8
                                           : throw std::invalid_argument("no cache format is called " + format);
    num_blocks_ = num_blocks;
    block_size_ = block_size;
  }

  // Runs the step of sequences that stand in rows of two tables; fills in `out`. `given` is the program's input, if it
  // has one: [T, width].
  void run(Matrix<const int32_t> token_table, Matrix<const int32_t> block_tables, Vector<const int64_t> slots,
           Vector<const int64_t> starts, Vector<const int64_t> num_tokens, Vector<const int64_t> logit_rows,
           Matrix<float> out, std::optional<Matrix<const float>> given) {
    const StepInputs inputs = gather(token_table, block_tables, slots, starts, num_tokens, logit_rows);
    if (given) give(*given, inputs.num_tokens, inputs.num_rows);
    run_inputs(inputs, out);
  }

  // Runs a program of values alone: x is its input, [rows, width].
  void run_rows(Matrix<const float> x, Matrix<float> out) {
    StepInputs inputs;
    inputs.num_tokens = inputs.num_rows = static_cast<int64_t>(x.shape(0));
    give(x, inputs.num_tokens, inputs.num_rows);
    run_inputs(inputs, out);
  }

  int64_t num_instructions() const { return program_.num_instructions(); }

 private:
  static Axis axis(bool is_of_tokens) { return is_of_tokens ? Axis::kTokens : Axis::kLogitRows; }

  static const float* pointer_of(const std::optional<Vector<const float>>& vector, int64_t size) {
    if (!vector) return nullptr;
    if (static_cast<int64_t>(vector->shape(0)) != size) throw std::invalid_argument("a vector of another length");
    return vector->data();
  }

  void check_width(ValueId value, int64_t width) const {
    if (program_.width(value) != width) {
      throw std::invalid_argument("rows of " + std::to_string(program_.width(value)) + " where " +
                                  std::to_string(width) + " are needed");
    }
  }

  // Makes room for the whole step: growing later would lose what is given.
  void give(const Matrix<const float>& rows, int64_t num_tokens, int64_t num_logit_rows) {
    check_width(given_.at(0), static_cast<int64_t>(rows.shape(1)));
    if (static_cast<int64_t>(rows.shape(0)) != num_tokens) throw std::invalid_argument("another number of rows");
    std::copy_n(rows.data(), rows.size(), program_.prepare(given_.at(0), std::max(num_tokens, num_logit_rows)));
  }

  void run_inputs(const StepInputs& inputs, Matrix<float>& out) {
    const int64_t num_rows = is_result_of_tokens_ ? inputs.num_tokens : inputs.num_rows;
    if (static_cast<int64_t>(out.shape(0)) != num_rows ||
        static_cast<int64_t>(out.shape(1)) != program_.width(result_)) {
      throw std::invalid_argument("the result has another shape");
    }
    nb::gil_scoped_release released;
    program_.run(inputs);
    std::copy_n(program_.prepare(result_, num_rows), out.size(), out.data());
  }

  // The flat axis of the step; checks all that the kernels use as an index.
  StepInputs gather(const Matrix<const int32_t>& token_table, const Matrix<const int32_t>& block_tables,
                    const Vector<const int64_t>& slots, const Vector<const int64_t>& starts,
                    const Vector<const int64_t>& num_tokens, const Vector<const int64_t>& logit_rows) {
    const int64_t num_sequences = static_cast<int64_t>(slots.shape(0));
    if (static_cast<int64_t>(caches_.size()) < num_layers_) throw std::invalid_argument("layers without a cache");
    if (starts.shape(0) != slots.shape(0) || num_tokens.shape(0) != slots.shape(0)) {
      throw std::invalid_argument("slots, starts and num_tokens of different lengths");
    }
    token_ids_.clear(), positions_.clear(), cache_slots_.clear(), query_starts_.assign(1, 0), context_lengths_.clear();
    const int64_t table_width = static_cast<int64_t>(block_tables.shape(1));
    step_tables_.resize(static_cast<size_t>(num_sequences * table_width));
    for (int64_t s = 0; s < num_sequences; ++s) {
      const int64_t slot = slots(s), begin = starts(s), end = begin + num_tokens(s);
      if (slot < 0 || slot >= static_cast<int64_t>(token_table.shape(0)) ||
          slot >= static_cast<int64_t>(block_tables.shape(0)) || begin < 0 || end <= begin ||
          end > static_cast<int64_t>(token_table.shape(1)) || divide_up(end, block_size_) > table_width) {
        throw std::out_of_range("a sequence outside the tables");
      }
      const int32_t* table = block_tables.data() + slot * table_width;
      const int64_t used = divide_up(end, block_size_);
      for (int64_t i = 0; i < used; ++i) {
        if (table[i] < 0 || table[i] >= num_blocks_) throw std::out_of_range("a block outside the cache");
      }
      std::copy_n(table, used, step_tables_.data() + s * table_width);
      for (int64_t position = begin; position < end; ++position) {
        token_ids_.push_back(token_table(slot, position));
        positions_.push_back(static_cast<int32_t>(position));
        cache_slots_.push_back(table[position / block_size_] * block_size_ + position % block_size_);
      }
      query_starts_.push_back(static_cast<int64_t>(token_ids_.size()));
      context_lengths_.push_back(end);
    }
    for (size_t i = 0; i < logit_rows.shape(0); ++i) {
      if (logit_rows(i) < 0 || logit_rows(i) >= static_cast<int64_t>(token_ids_.size())) {
        throw std::out_of_range("a logit row outside the step");
      }
    }
    StepInputs inputs;
    inputs.num_tokens = static_cast<int64_t>(token_ids_.size());
    inputs.num_sequences = num_sequences;
    inputs.num_rows = static_cast<int64_t>(logit_rows.shape(0));
    inputs.token_ids = token_ids_.data();
    inputs.positions = positions_.data();
    inputs.slots = cache_slots_.data();
    inputs.logit_rows = logit_rows.data();
    inputs.query_starts = query_starts_.data();
    inputs.context_lengths = context_lengths_.data();
    inputs.block_tables = step_tables_.data();
    inputs.block_table_stride = table_width;
    inputs.caches = caches_.data();
    inputs.cache_format = cache_format_;
    inputs.block_size = block_size_;
    return inputs;
  }

  Program program_;
  std::vector<ValueId> given_;
  ValueId result_ = 0;
  bool is_result_of_tokens_ = true;
  std::vector<LayerCache> caches_;
  int64_t num_layers_ = 0;
  CacheFormat cache_format_ = CacheFormat::kFloat32;
  int64_t num_blocks_ = 0;
  int64_t block_size_ = 1;
  // The step's inputs, kept so that a step allocates nothing.
  std::vector<int32_t> token_ids_, positions_, step_tables_;
  std::vector<int64_t> cache_slots_, query_starts_, context_lengths_;
};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_kernels()) names.emplace_back(table->name);
  return names;
}

}  // namespace
}  // namespace quire

NB_MODULE(_extension, m) {
  using quire::StepProgram;
  using quire::ThreadPool;
  using quire::Weight;
  // An interpreter that exits need not have collected everything.
  nb::set_leak_warnings(false);
  m.def("instruction_sets", &quire::instruction_sets);
  nb::class_<ThreadPool>(m, "ThreadPool")
      .def(nb::init<int>(), "num_threads"_a)
      .def_prop_ro("num_threads", &ThreadPool::num_threads);
  quire::bind_sample(m);
  nb::class_<Weight>(m, "Weight")
      .def(nb::init<int64_t, int64_t>(), "num_rows"_a, "num_columns"_a)
      .def("add_segment", &Weight::add_segment, "format"_a, "num_rows"_a)
      .def("write_floats", &Weight::write_floats, "pool"_a, "segment"_a, "first"_a, "rows"_a)
      .def("write_rows", &Weight::write_rows, "pool"_a, "segment"_a, "first"_a, "rows"_a)
      .def("read_rows", &Weight::read_rows, "first"_a, "out"_a)
      .def_prop_ro("formats", &Weight::formats)
      .def_prop_ro("num_bytes", &Weight::num_bytes)
      .def_prop_ro("num_rows", &Weight::num_rows)
      .def_prop_ro("num_columns", &Weight::num_columns)
      .def_prop_ro("can_gate", &Weight::can_gate);
  nb::class_<StepProgram>(m, "StepProgram")
      .def(
          "__init__",
          [](StepProgram* self, std::shared_ptr<ThreadPool> pool, const std::string& instruction_set) {
            new (self) StepProgram(std::move(pool), quire::kernels_named(instruction_set));
          },
          "pool"_a, "instruction_set"_a)
      .def("input", &StepProgram::input, "width"_a)
      .def("embedding", &StepProgram::embedding, "weight"_a)
      .def("rope_tables", &StepProgram::rope_tables, "inverse_frequencies"_a, "factor"_a)
      .def("linear", &StepProgram::linear, "x"_a, "is_of_tokens"_a, "weight"_a, "bias"_a.none(), "norm"_a.none(),
           "epsilon"_a, "is_gated"_a, "add_to"_a.none())
      .def("silu_mul", &StepProgram::silu_mul, "x"_a, "is_of_tokens"_a)
      .def("rms_norm", &StepProgram::rms_norm, "x"_a, "is_of_tokens"_a, "weight"_a, "epsilon"_a)
      .def("rope_kv_write", &StepProgram::rope_kv_write, "qkv"_a, "tables"_a, "layer"_a, "num_heads"_a,
           "num_kv_heads"_a, "head_dim"_a, "query_norm"_a.none(), "key_norm"_a.none(), "epsilon"_a)
      .def("attend", &StepProgram::attend, "query"_a, "layer"_a, "num_heads"_a, "num_kv_heads"_a, "head_dim"_a,
           "scale"_a, "sliding_window"_a, "soft_cap"_a)
      .def("select_rows", &StepProgram::select_rows, "x"_a)
      .def("finish", &StepProgram::finish, "result"_a, "is_of_tokens"_a)
      .def("add_cache", &StepProgram::add_cache, "keys"_a, "values"_a, "key_scales"_a, "value_scales"_a)
      .def("set_cache_shape", &StepProgram::set_cache_shape, "format"_a, "num_blocks"_a, "block_size"_a)
      .def("run", &StepProgram::run, "token_table"_a, "block_tables"_a, "slots"_a, "starts"_a, "num_tokens"_a,
           "logit_rows"_a, "out"_a, "given"_a.none() = nb::none())
      .def("run_rows", &StepProgram::run_rows, "x"_a, "out"_a)
      .def_prop_ro("num_instructions", &StepProgram::num_instructions);
}
