#include <algorithm>
#include <stdexcept>

#include "launch.h"
#include "row_families.h"
#include "row_kernels.h"
#include "row_team.h"
#include "rows.h"

namespace kd {

bool keeps_terms(Family family) { return family != Family::kKl && family != Family::kAkl; }

namespace {

constexpr int kVectorsPerThread = 4;  // of a side, while a block has not all its threads

int bytes_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

int threads_for(int64_t vectors) {
  const int64_t warps = (vectors + kVectorsPerThread * kWarp - 1) / (kVectorsPerThread * kWarp);
  return static_cast<int>(std::min<int64_t>(warps * kWarp, kMaxRowThreads));
}

RowKernels kernels_of(const RowsCall& call, int entry_bytes) {
  switch (call.family) {
    case Family::kKl:
      if (call.params[1] == 0) return row_kernels<KlRows<true, false>>(entry_bytes);
      if (call.params[0] == 0) return row_kernels<KlRows<false, true>>(entry_bytes);
      return row_kernels<KlRows<true, true>>(entry_bytes);
    case Family::kAkl: return row_kernels<AklRows>(entry_bytes);
    case Family::kJsd: return row_kernels<JsdRows>(entry_bytes);
    case Family::kTeacherMixture: return row_kernels<MixtureRows<false>>(entry_bytes);
    case Family::kStudentMixture: return row_kernels<MixtureRows<true>>(entry_bytes);
    case Family::kTvd: return row_kernels<TvdRows>(entry_bytes);
    case Family::kTodi:
      if (call.params[0] == 1) return row_kernels<TodiRows<true>>(entry_bytes);
      return row_kernels<TodiRows<false>>(entry_bytes);
  }
  throw std::invalid_argument("unknown family");
}

double curvature_of(const RowsCall& call) {
  const double a = call.params[0], b = 1 - a;
  switch (call.family) {
    case Family::kJsd: return a * b;
    case Family::kTeacherMixture: return a * a;
    case Family::kStudentMixture: return b * b;
    case Family::kTodi: return 1 + a;
    default: return 1;
  }
}

int key_shift_of(DType dtype) { return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 16 : 13; }

}  // namespace

SharedMemory shared_memory_of(int capability) {
  constexpr size_t kKiB = 1024;
  switch (capability) {
    case 80:
    case 87: return {163 * kKiB, 164 * kKiB};
    case 86:
    case 89: return {99 * kKiB, 100 * kKiB};
    default: break;
  }
  if (capability >= 90 && capability < 120) return {227 * kKiB, 228 * kKiB};
  return {99 * kKiB, 100 * kKiB};
}

RowPlan plan_rows(int64_t columns, DType dtype, bool keeps, int capability, int blocks) {
  constexpr int64_t kVector = 16;
  constexpr size_t kReserved = 1024;  // bytes of every block that the system takes
  const int64_t entries = kVector / bytes_of(dtype), vectors = (columns + entries - 1) / entries;
  const SharedMemory memory = shared_memory_of(capability);
  const auto on_chip = [&](int blocks, bool with_h) {
    const int64_t slice = (vectors + blocks - 1) / blocks;
    const int64_t sides = 2 * (slice + 1);  // a row that begins within a vector of memory ends in one more
    const int64_t beside =
        with_h && bytes_of(dtype) == 2 ? slice : 0;  // h of 32 bits takes the teacher's place, or more
    return RowPlan{blocks, threads_for(slice), slice, with_h, sizeof(RowMemory) + size_t((sides + beside) * kVector)};
  };
  const auto streamed = [&] {
    const int threads = threads_for(vectors);
    return RowPlan{0, threads, vectors, false, sizeof(RowMemory) + size_t(threads * 2 * kRing * kVector)};
  };

  if (blocks == 0) return streamed();
  if (blocks > 0) {
    for (const bool with_h : {keeps, false}) {
      const RowPlan plan = on_chip(blocks, with_h);
      if (plan.shared_bytes <= memory.of_block) return plan;
    }
    throw std::invalid_argument("the row does not fit in so few blocks");
  }
  if (capability < 90) return streamed();
  for (const int few : {1, 2, 4, kMaxCluster}) {
    const RowPlan plan = on_chip(few, keeps);
    if (plan.shared_bytes <= memory.of_multiprocessor / kRowBlocks - kReserved) return plan;
  }
  for (const bool with_h : {keeps, false}) {
    const RowPlan plan = on_chip(kMaxCluster, with_h);
    if (plan.shared_bytes <= memory.of_block) return plan;
  }
  return streamed();
}

void run_rows(const RowsCall& call, const float* normalizer, const RowPlan& plan, void* stream) {
  constexpr int64_t kMostColumns = int64_t(1) << 30;
  if (call.width > kMostColumns || call.columns > call.width) throw std::invalid_argument("rows of too many columns");
  if (call.rows == 0) return;
  const int entry_bytes = bytes_of(call.student.dtype);
  RowArguments of{};
  of.rows = call.rows;
  of.student_stride = call.student.row_stride;
  of.teacher_stride = call.teacher.row_stride;
  of.grad_stride = call.grad.row_stride;
  of.columns = static_cast<int>(call.columns);
  of.width = static_cast<int>(call.width);
  of.student = call.student.data;
  of.teacher = call.teacher.data;
  of.grad = call.grad.data;
  of.weight = static_cast<const float*>(call.weight);
  of.upstream = static_cast<const float*>(call.upstream);
  of.normalizer = normalizer;
  of.value = static_cast<float*>(call.value);
  of.student_entropy = static_cast<float*>(call.student_entropy);
  of.teacher_entropy = static_cast<float*>(call.teacher_entropy);
  of.rate_student = static_cast<float>(call.inverse_temperature_student / kLnBase<float>);
  of.rate_teacher = static_cast<float>(call.inverse_temperature_teacher / kLnBase<float>);
  of.k = static_cast<float>(call.inverse_temperature_student);
  of.ratio = static_cast<float>(call.inverse_temperature_teacher / call.inverse_temperature_student);
  of.scale = static_cast<float>(call.scale);
  of.a = static_cast<float>(call.params[0]);
  of.b = static_cast<float>(call.params[1]);
  of.curvature = static_cast<float>(curvature_of(call));
  of.key_shift = key_shift_of(call.teacher.dtype);
  of.half = call.student.dtype == DType::kFloat16;
  of.keeps = plan.keeps;
  of.slice = static_cast<int>(plan.slice);

  const RowKernels kernels = kernels_of(call, entry_bytes);
  const auto kernel = plan.blocks > 0 ? kernels.on_chip : kernels.streamed;
  const unsigned blocks = std::max(plan.blocks, 1);
  const int64_t teams = resident_clusters(kernel, plan.threads, plan.shared_bytes, blocks);
  const unsigned grid = static_cast<unsigned>(std::min(call.rows, teams)) * blocks;
  launch(kernel, grid, plan.threads, plan.shared_bytes, blocks, stream, of);
}

}  // namespace kd
