#define QUIRE_ISA amx
#include "native/cpu/kernels_of_isa.h"
