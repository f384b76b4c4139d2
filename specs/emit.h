/* Prints each explored transition of reset.pml (-DEMIT) as a line: state before, action, who, state after.
   A state is all of its variables, in the order of FIELDS; the first line names them, with how many each has. */
#include <stdio.h>
#define FIELDS ONE(head) ONE(cx) ONE(cP) ONE(bad_head) MANY(author) MANY(out) MANY(rows) MANY(key) \
  ONE(b.mode) ONE(b.fails) ONE(b.wins) ONE(b.gen) ONE(b.probe) ONE(b.cooled) ONE(died) MANY(mark) MANY(mbase) MANY(orphan) \
  MANY(phase) MANY(used) MANY(base) MANY(gen) MANY(wx) MANY(wP) MANY(bad) MANY(susp) MANY(begun) MANY(lost) MANY(acked) \
  MANY(abase) ONE(meas_at) MANY(fenced) ONE(crashes) ONE(cuts) ONE(fences) ONE(forces) ONE(faults) ONE(meas) ONE(invalid)
static FILE *emit_to;
static char emit_before[2048];
static void emit_state(char *into) {
  int k, p = 0;
#define ONE(x)  p += sprintf(into + p, "%d,", (int)now.x);
#define MANY(x) for (k = 0; k < (int)(sizeof(now.x) / sizeof(now.x[0])); k++) p += sprintf(into + p, "%d,", (int)now.x[k]);
  FIELDS
#undef ONE
#undef MANY
  into[p - 1] = 0;
}
static void emit_pre(void) {
  if (!emit_to) {
    emit_to = fopen("edges", "w");
#define ONE(x)  fprintf(emit_to, "%s 1\t", #x);
#define MANY(x) fprintf(emit_to, "%s %d\t", #x, (int)(sizeof(now.x) / sizeof(now.x[0])));
    FIELDS
    fprintf(emit_to, "\n");
#undef ONE
#undef MANY
  }
  emit_state(emit_before);
}
static void emit_post(const char *action, int who) {
  char after[2048];
  emit_state(after);
  fprintf(emit_to, "%s\t%s\t%d\t%s\n", emit_before, action, who, after);
}
