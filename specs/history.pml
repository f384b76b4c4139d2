/* history.pml -- the log of one user's versions under damage: walk-back, restore, probation, pruning, newer rules.
 *
 * The log is one record a version: a step (what one measurement adds) or an image (the whole state).  A version reads
 * if the newest image at or before it reads, and every step from there on.  The head record caches the log's end.
 * NR processes each plan an operation from what they read, and commit it later if the head is still what they read.
 *
 * Bounds: NV versions, NR processes, FLIPS (records that go bad), RULES (changes of the rules in force), CRASHES;
 * every KEY-th version is an image, and PASS accepted measurements end a probation.
 */
#ifndef NV
#define NV 5
#endif
#ifndef NR
#define NR 2
#endif
#ifndef FLIPS
#define FLIPS 2
#endif
#ifndef RULES
#define RULES 1
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef KEY
#define KEY 4
#endif
#ifndef PASS
#define PASS 2
#endif

#define ABSENT 0
#define STEP   1
#define IMAGE  2
/* what a process plans */
#define NOTHING_ 0
#define INITIAL  1
#define ACCEPT   2
#define RESET    3
#define REVOKE   4
#define RECOVER  5
#define RESTORE  6

#define W_INITIAL        10
#define W_ACCEPTED       11
#define W_RESET          12
#define W_RESET_AGAIN    13
#define W_PASSED         14
#define W_REVOKED        15
#define W_HEAD_MENDED    16
#define W_WALKED_BACK    17
#define W_NONE_GOOD      18
#define W_RESTORED       19
#define W_RESTORED_GOOD  20
#define W_NOT_SOUND      21
#define W_CONFLICTED     22
#define W_PRUNED         23
#define W_NONCONFORMING  24
#define W_FLIPPED        25
#define W_FLIPPED_HEAD   26
#define W_CRASHED        27

#include "common.pml"

/* [durable] */
byte kind[NV + 1];
byte newest;                   /* the highest version in the log; 0: nothing was ever stored */
byte first;                    /* the lowest */
bit  torn[NV + 1];             /* the record fails its checksum */
bit  head_torn;
byte probation;                /* the version whose reset is under probation, or 0 */
byte passed;                   /* measurements accepted since */
byte pin;                      /* the version whose state is pinned, + 1, or 0 */
bit  left[NV + 1];             /* the measurement of this version was put aside again */
byte moved_aside;              /* damaged head records that were kept */
byte state[NV + 1];            /* which state a version holds: the number of the version that made it */
byte breaks;                   /* states whose number is this break the newest rules; 0: none does */
/* [volatile] */
byte plan[NR], target[NR], read_newest[NR];
bit  read_torn[NR];
/* [ghost] */
byte given;                    /* the highest version number that was ever given out */
byte torn_heads;               /* damaged head records that were replaced */
byte before;                   /* the version before the reset that began the probation, + 1 */
byte flips, rules, crashes;

hidden byte i, n, good, low;

#define SOUND(v) (breaks == 0 || state[v] != breaks)

inline CHECK() {
  /* INV-05: the log begins with an image and has no gaps. */
  assert(newest == 0 || kind[first] == IMAGE);
  i = 1;
  do
  :: i <= NV -> assert((kind[i] != ABSENT) == (newest != 0 && i >= first && i <= newest)); i++
  :: else -> break
  od;
  /* INV-05: a version number is given out once. */
  assert(newest == given);
  /* INV-01: what could not be read is kept for whoever looks into it. */
  assert(moved_aside == torn_heads);
  /* INV-04: during probation the before-image stays that of the reset that began it. */
  assert((probation != 0) == (pin != 0) && pin == before);
  i = 0; n = 0; good = 0; low = 0
}

/* good: the newest version at or below `from` that reads and passes the rules in force, or 0. */
inline NEWEST_GOOD(from) {
  good = 0; i = from;
  do
  :: i >= first && i > 0 && good == 0 ->
     n = i;                    /* down to the image that i is folded from */
     do
     :: kind[n] == STEP && !torn[n] && n > first -> n--
     :: else -> break
     od;
     if
#ifdef M_WALK_BACK_UNVALIDATED
     :: kind[n] == IMAGE && !torn[n] -> good = i
#else
     :: kind[n] == IMAGE && !torn[n] && SOUND(i) -> good = i
#endif
     :: else
     fi;
     i--
  :: else -> break
  od
}

#define HEAD_READS (newest != 0 && !head_torn)

/* What one process reads before it decides; nothing is durable yet. */
inline PLAN(r, what, at) { plan[r] = what; target[r] = at; read_newest[r] = newest; read_torn[r] = head_torn }
inline DONE(r) { plan[r] = NOTHING_; target[r] = 0; read_newest[r] = 0; read_torn[r] = 0 }

/* Parts of one transaction. */
inline APPEND(k, holds) {
#ifdef M_REUSE_VERSION
  if :: good != 0 && good < newest -> n = good + 1 :: else -> n = newest + 1 fi;
#else
  n = newest + 1;
#endif
  kind[n] = k; torn[n] = 0; left[n] = 0;
  if :: holds == 0 -> state[n] = n :: else -> state[n] = holds fi;
  if :: newest == 0 -> first = 1 :: else fi;
  given++; newest = n;
  if :: head_torn -> 
        torn_heads++; head_torn = 0;
#ifndef M_OVERWRITE_DAMAGE
        moved_aside++;
#endif
        skip
  :: else fi
}
inline CALM() { probation = 0; passed = 0; pin = 0; before = 0 }
inline PRUNE() {               /* the older half goes, up to just before an image, with the commit of a newer version */
  low = newest - 1;
  do
#ifdef M_PRUNE_ANYWHERE
  :: low > first + 1 && kind[low] == STEP -> break
#endif
  :: low > first && kind[low] != IMAGE -> low--
  :: else -> break
  od;
  if
  :: newest > 3 && low > first && (pin == 0 || low < pin - 1) ->
     do :: first < low -> kind[first] = ABSENT; torn[first] = 0; state[first] = 0; left[first] = 0; first++ :: else -> break od;
     SAW(W_PRUNED)
  :: else
  fi
}

#define CHANGED(r) (read_newest[r] != newest || read_torn[r] != head_torn)

inline DO_ACCEPT(r) {
  if :: (newest + 1) % KEY == 0 -> APPEND(IMAGE, 0) :: else -> APPEND(STEP, 0) fi;
  if
  :: probation != 0 -> passed++; if :: passed >= PASS -> CALM(); SAW(W_PASSED) :: else fi
  :: else
  fi;
  PRUNE(); SAW(W_ACCEPTED)
}
inline DO_RESET(r) {
#ifdef M_PIN_MOVES
  if
  :: true -> if :: probation == 0 -> before = newest + 1 :: else fi; pin = newest + 1
#else
  if
  :: probation == 0 -> pin = newest + 1; before = newest + 1; SAW(W_RESET)
  :: else -> SAW(W_RESET_AGAIN)
#endif
  fi;
  APPEND(IMAGE, 0); probation = newest; passed = 0; PRUNE()
}
inline DO_RECOVER(r) {
  NEWEST_GOOD(newest);
  if
  :: good == 0 -> SAW(W_NONE_GOOD)       /* an answer of its own: nothing is changed, and no reset may start */
  :: good != 0 && good == newest ->      /* the log is whole: the head alone is written anew */
     torn_heads++; moved_aside++; head_torn = 0; CALM(); SAW(W_HEAD_MENDED)
  :: else ->
     assert(SOUND(good));                /* INV-04: what is served again passes the rules in force */
     i = good + 1;                       /* INV-08: what the versions after it had taken in is put aside again */
     do :: i <= newest -> if :: kind[i] == STEP -> left[i] = 1 :: else fi; i++ :: else -> break od;
     CALM(); APPEND(IMAGE, state[good]); SAW(W_WALKED_BACK)
  fi
}
inline DO_RESTORE(r) {
  if
#ifndef M_RESTORE_UNVALIDATED
  :: !SOUND(target[r]) -> SAW(W_NOT_SOUND)
#endif
  :: else ->
     assert(SOUND(target[r]));           /* INV-04 */
     CALM(); APPEND(IMAGE, state[target[r]]); SAW(W_RESTORED)
  fi
}

#define READS(v) (v >= first && v <= newest && v != 0 && good == v)
#define ROOM     (newest < NV)

proctype Process(byte r) {
  byte v;
end:
  do
  /* the measurement loop: an initial reset, a step, a reset, a revocation; a damaged head is recovered first */
#ifdef M_DAMAGE_IS_NOTHING
  :: d_step { plan[r] == NOTHING_ && (newest == 0 || head_torn) && ROOM -> PLAN(r, INITIAL, 0); CHECK() }
#else
  :: d_step { plan[r] == NOTHING_ && newest == 0 && ROOM -> PLAN(r, INITIAL, 0); CHECK() }
#endif
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && SOUND(newest) -> PLAN(r, ACCEPT, 0); CHECK() }
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM -> PLAN(r, RESET, 0); CHECK() }
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && pin != 0 -> PLAN(r, REVOKE, pin - 1); CHECK() }
#ifdef M_WALK_BACK_NONCONFORMING
  :: d_step { plan[r] == NOTHING_ && newest != 0 && (head_torn || !SOUND(newest)) && ROOM -> PLAN(r, RECOVER, 0); CHECK() }
#else
  :: d_step { plan[r] == NOTHING_ && newest != 0 && head_torn && ROOM -> PLAN(r, RECOVER, 0); CHECK() }
#endif
  /* the operator's hand: to any version that reads, or to the last known good */
  :: d_step { plan[r] == NOTHING_ && HEAD_READS && ROOM && newest > first ->
              NEWEST_GOOD(newest - 1);
              if
              :: pin > 1 -> good = pin - 1           /* the pinned state is a record of its own */
              :: pin == 1 -> good = 0                /* nothing stood before the initial reset */
              :: else
              fi;
#ifdef M_LAST_GOOD_IS_HEAD
              good = newest;
#endif
              if
              :: good != 0 ->
                 /* INV-04: what is under probation is not known to be good */
                 assert(probation == 0 || good < probation);
                 PLAN(r, RESTORE, good); SAW(W_RESTORED_GOOD)
              :: else -> SAW(W_NONE_GOOD)
              fi;
              CHECK() }
  /* commits, each one transaction */
  :: d_step { plan[r] != NOTHING_ && CHANGED(r) -> DONE(r); SAW(W_CONFLICTED); CHECK() }
  :: d_step { plan[r] == INITIAL && !CHANGED(r) ->
              assert(newest == 0);       /* INV-04: only "nothing stored" may start an initial reset */
              pin = 1; before = 1; APPEND(IMAGE, 0); probation = newest; DONE(r); SAW(W_INITIAL); CHECK() }
  :: d_step { plan[r] == ACCEPT && !CHANGED(r) -> DO_ACCEPT(r); DONE(r); CHECK() }
  :: d_step { plan[r] == RESET && !CHANGED(r) -> DO_RESET(r); DONE(r); CHECK() }
  :: d_step { plan[r] == REVOKE && !CHANGED(r) ->
              n = target[r];
              if
              :: n == 0 || pin == 0 -> skip     /* it was an initial reset: the run is begun anew */
              :: else -> v = state[n]; APPEND(IMAGE, v); CALM(); SAW(W_REVOKED); v = 0
              fi;
              DONE(r); CHECK() }
  :: d_step { plan[r] == RECOVER && !CHANGED(r) ->
              assert(head_torn);         /* INV-04: a readable state that breaks newer rules is not walked back by itself */
              DO_RECOVER(r); DONE(r); CHECK() }
  :: d_step { plan[r] == RESTORE && !CHANGED(r) -> DO_RESTORE(r); DONE(r); CHECK() }
  :: d_step { crashes < CRASHES && plan[r] != NOTHING_ -> crashes++; DONE(r); SAW(W_CRASHED); CHECK() }
  od
}

proctype World() {
  byte v;
end:
  do
  :: d_step { flips < FLIPS && newest != 0 && !head_torn -> flips++; head_torn = 1; SAW(W_FLIPPED_HEAD); CHECK() }
  :: atomic { flips < FLIPS && newest != 0 ->            /* a record of the log, and with the newest its head */
              v = first; do :: v < newest -> v++ :: break od;
              d_step { flips++; torn[v] = 1; if :: v == newest -> head_torn = 1 :: else fi; v = 0; SAW(W_FLIPPED); CHECK() } }
  :: atomic { rules < RULES && newest != 0 ->            /* newer rules, which some state of the log breaks */
              v = first; do :: v < newest -> v++ :: break od;
              d_step { rules++; breaks = state[v]; v = 0; SAW(W_NONCONFORMING); CHECK() } }
  od
}

init {
  byte k;
  atomic {
    c_code { atexit(tell_seen); };
    do :: k < NR -> run Process(k); k++ :: else -> break od;
    run World(); k = 0
  }
}
