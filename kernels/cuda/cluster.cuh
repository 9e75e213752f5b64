// CTAs of a cluster: they run at the same time, and write to each other's shared memory.

#pragma once

#include "ptx.cuh"

// A barrier of all threads of a cluster, in two halves. What a thread stored before it arrives, all threads
// of the cluster see behind their waits.
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Stores to the shared memory of a CTA of the cluster, at the place that `at` is in that of this CTA.
__device__ __forceinline__ void store_to_cta(float* at, u32 rank, float value) {
  u32 there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"((u32)__cvta_generic_to_shared(at)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value) : "memory");
}
