// What the row kernels are launched with.
#pragma once

#include <cstdint>

namespace kd {

struct RowArguments {
  int64_t rows, student_stride, teacher_stride, grad_stride;  // strides in elements
  int columns, width;
  const void* student;
  const void* teacher;
  void* grad;  // null: values only
  const float* weight;
  const float* upstream;
  const float* normalizer;
  float* value;
  float* student_entropy;
  float* teacher_entropy;
  float rate_student, rate_teacher;  // log2(e) / T
  float k;                           // 1 / T of the student
  float ratio;                       // T of the student / T of the teacher
  float scale;
  float a, b;       // the family's parameters
  float curvature;  // f''(1) of the divergence, its ratio to the KL where the sides are close
  int key_shift;    // low bits of a float that are 0 in every logit of the teacher's dtype
  bool half;        // entries of 16 bits are float16, not bfloat16
  bool keeps;       // there is room for h in the slice
  int slice;        // vectors of a row that a block of the cluster holds
};

}  // namespace kd
